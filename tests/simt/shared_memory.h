// The shared memory of the block that runs, with canaries between the allocations.
#pragma once

#include <cstddef>

namespace simt {

struct Allocation {
  const char* name;
  char* place;
  size_t bytes;
};

// Everything is as uninitialised as before the first block.
void begin_shared_memory(size_t dynamic_bytes);

// Fails if a canary has been written to.
void check_canaries();

// Whether a pointer is to shared memory, or to what lies between.
bool in_shared_arena(const void* address);

// The allocation that a pointer into the arena is in, or else the one nearest to it.
const Allocation& nearest_shared(const void* address);

// Where the arena begins, and its size.
char* shared_arena();
size_t shared_arena_bytes();

}  // namespace simt
