// Checks every access of device code, if the harness was compiled with -fsanitize=thread: the calls
// that the compiler inserts lead here instead of to ThreadSanitizer. The checker stores who
// accessed each byte last, and what the barriers have ordered. README.md lists the faults that it
// finds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// Device code may access this memory until forget_arrays() is called.
void add_array(int number, const void* begin, size_t bytes);
void forget_arrays();

void order_launch();                 // orders all that follows after all that came before
void order_block(unsigned threads);  // a thread block begins
void order_barrier();                // all threads of the thread block
void order_warp(unsigned first_rank, uint32_t mask);  // these lanes

}  // namespace simt
