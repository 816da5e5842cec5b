#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#define SIMT_UCONTEXT
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

// The optimiser must not assume that the code after a switch follows the code before it.
#if defined(__GNUC__) && !defined(__clang__)
#define SIMT_NOIPA __attribute__((noipa))
#else
#define SIMT_NOIPA __attribute__((noinline))
#endif

#if !defined(SIMT_UCONTEXT)
// void simt_switch(void** from, void* to): saves the callee-saved registers on the stack, and
// restores those of another stack. swapcontext does the same with two more system calls.
asm(R"(
  .text
  .p2align 4
  .hidden simt_switch
  .globl simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, . - simt_switch
)");
extern "C" SIMT_NOIPA void simt_switch(void** from, void* to);
#endif

namespace simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // redzones make frames several times larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

struct Context {
#if defined(SIMT_UCONTEXT)
  ucontext_t state;
#else
  void* stack_pointer;
#endif
  // For AddressSanitizer.
  const void* bottom;
  size_t bytes;
  void* fake_stack;
};

Context outside;
Context fibers[kMaxThreadsPerBlock];
void (*entries[kMaxThreadsPerBlock])();
unsigned entering;  // the fiber that starts with the next switch

// One mapping for all stacks; the system provides pages on access. There are no guard pages between
// the stacks: each would be another mapping, and a process may have few. The first thread overflows
// into a spare stack, the others into their neighbour's.
constexpr size_t kAllStacksBytes = (kMaxThreadsPerBlock + 1) * kStackBytes;
char* stacks() {
  static char* const all = [] {
    void* found = mmap(nullptr, kAllStacksBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
      std::perror("simt: no memory for stacks");
      std::abort();
    }
    return static_cast<char*>(found);
  }();
  return all;
}

// The value at the far end of a stack that has not overflowed.
constexpr uintptr_t kUntouched = 0x5afe57ac;

char* stack_of(unsigned thread) { return stacks() + (thread + 1) * kStackBytes; }
uintptr_t& far_end_of(unsigned thread) { return *reinterpret_cast<uintptr_t*>(stack_of(thread)); }

SIMT_NOIPA void switch_context(Context& from, Context& to, [[maybe_unused]] bool finished) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(finished ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.state, &to.state);
#else
  simt_switch(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &outside.bottom, &outside.bytes);
#endif
  entries[entering]();
  std::abort();  // entries do not return
}

}  // namespace

void start_fiber(unsigned thread, void (*entry)()) {
  char* const bottom = stack_of(thread);
  Context& fiber = fibers[thread];
  fiber = {};
  fiber.bottom = bottom;
  fiber.bytes = kStackBytes;
  entries[thread] = entry;
#if defined(__SANITIZE_ADDRESS__)
  // An abandoned fiber has left the redzones of its frames.
  __asan_unpoison_memory_region(bottom, kStackBytes);
#endif
  far_end_of(thread) = kUntouched;
#if defined(SIMT_UCONTEXT)
  getcontext(&fiber.state);
  fiber.state.uc_stack.ss_sp = bottom;
  fiber.state.uc_stack.ss_size = kStackBytes;
  fiber.state.uc_link = nullptr;
  makecontext(&fiber.state, enter, 0);
#else
  // Six registers, the address for `ret`, and 0 as the return address of `enter`: the stack then
  // has the alignment that a call leaves.
  auto* top = reinterpret_cast<uintptr_t*>(bottom + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
#endif
}

void resume_fiber(unsigned thread) {
  entering = thread;
  switch_context(outside, fibers[thread], false);
}

void suspend_fiber(unsigned thread, bool finished) {
  switch_context(fibers[thread], outside, finished);
}

bool has_overflown(unsigned thread) { return far_end_of(thread) != kUntouched; }

bool on_fiber_stack(const void* address) {
  return address >= stacks() && address < stacks() + kAllStacksBytes;
}

}  // namespace simt
