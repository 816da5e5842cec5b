// Fibers: each CUDA thread runs on its own stack until it must wait for others.
#pragma once

#include <cstddef>

// CUDA's limit, and the number of stacks.
constexpr unsigned kMaxThreadsPerBlock = 1024;

namespace simt {

// Prepares the fiber of a thread to call `entry`, which must not return.
void start_fiber(unsigned thread, void (*entry)());

// Called from outside of fibers: runs the fiber until it suspends.
void resume_fiber(unsigned thread);

// Called from inside the fiber: returns to where it was resumed. A `finished` fiber never
// continues.
void suspend_fiber(unsigned thread, bool finished = false);

// Whether the fiber has used more than its stack.
bool has_overflown(unsigned thread);

// Whether an address is in the stack of a fiber.
bool on_fiber_stack(const void* address);

}  // namespace simt
