// The shared memory of the running thread block, with canaries between the allocations.
#pragma once

#include <cstddef>

namespace simt {

struct Allocation {
  const char* name;
  char* place;
  size_t bytes;
};

// Starts a thread block: all of shared memory is uninitialised again.
void begin_shared_memory(size_t dynamic_bytes);

// Fails if a kernel has written to a canary.
void check_canaries();

// Whether an address is in shared memory or its canaries.
bool in_shared_arena(const void* address);

// The allocation that contains an address of the arena, or else the nearest one.
const Allocation& nearest_shared(const void* address);

// The arena: the memory of all allocations and canaries.
char* shared_arena();
size_t shared_arena_bytes();

}  // namespace simt
