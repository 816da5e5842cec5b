// Fibers: a CUDA thread runs on a stack of its own until it has to wait for others.
#pragma once

#include <cstddef>

// As in CUDA, and no more than the stacks that are kept.
constexpr unsigned kMaxThreadsPerBlock = 1024;

namespace simt {

// Makes the fiber of a thread ready to call `entry`, which must not return, from the start.
void start_fiber(unsigned thread, void (*entry)());

// From outside: runs the fiber until it suspends.
void resume_fiber(unsigned thread);

// From inside: back to where the fiber was resumed. A fiber that is `finished` never continues.
void suspend_fiber(unsigned thread, bool finished = false);

// Whether the fiber has used more stack than there is.
bool has_overflown(unsigned thread);

// Whether a pointer is to some fiber's stack.
bool on_fiber_stack(const void* address);

}  // namespace simt
