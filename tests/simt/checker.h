// Looks at every access that device code makes, where the harness was compiled with
// -fsanitize=thread: the calls that the compiler then inserts lead here, and not to
// ThreadSanitizer. What is known of a byte is who accessed it last; what is known of the threads is
// what their barriers have ordered. README.md tells which faults it finds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// Device code may access this memory, from now until forget_arrays().
void know_array(int number, const void* begin, size_t bytes);
void forget_arrays();

void order_launch();                                  // after everything before
void order_block(unsigned threads);                   // a block begins
void order_barrier();                                 // all threads of the block
void order_warp(unsigned first_rank, uint32_t mask);  // these lanes

}  // namespace simt
