#include "runtime.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checker.h"
#include "host.h"
#include "shared_memory.h"

namespace simt {

Settings settings;
Thread* current = nullptr;
Launch running;

namespace {

Thread threads[kMaxThreadsPerBlock];
unsigned thread_count;

// The kernel and its arguments, for run_thread.
void (*thread_body)(const void*);
const void* thread_parameters;

// The barrier of the thread block: the threads that have arrived, and those with a true predicate.
unsigned arrived;
int num_true, last_num_true;  // at the current and at the last barrier

// Ends a launch. The message is "kind: text".
struct Fault {
  std::string message;
};
std::string fault;       // set in a fiber, thrown by the scheduler
std::string last_fault;  // returned by simt_fault()
uint64_t random_state;
std::vector<std::pair<const void*, size_t>> allowed_dynamic;  // by kernel

constexpr size_t kDynamicByDefault = 48 << 10;

// Splitmix64, whose numbers are good for every seed.
uint64_t random_number() {
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// A bit for each thread that can run. The first one in order always runs next, so that warps get as
// far ahead of each other as barriers allow.
constexpr unsigned kWords = kMaxThreadsPerBlock / 64;
uint64_t ready[kWords];

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  ready[thread.rank / 64] |= uint64_t(1) << thread.rank % 64;
}

// The lowest or the highest ready thread, or the first one from a random place on; null without
// any.
Thread* choose() {
  const bool descending = settings.order == Order::kDescending;
  const unsigned start =
      settings.order == Order::kRandom ? random_number() % kMaxThreadsPerBlock : 0;
  // The search ends in the word where it started, for the bits below the start.
  for (unsigned i = 0; i <= kWords; ++i) {
    const unsigned word = descending ? (2 * kWords - 1 - i) % kWords : (start / 64 + i) % kWords;
    uint64_t bits = ready[word];
    if (i == 0) bits &= ~uint64_t(0) << start % 64;
    if (bits == 0) continue;
    const unsigned bit = descending ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
    ready[word] &= ~(uint64_t(1) << bit);
    return &threads[64 * word + bit];
  }
  return nullptr;
}

void run_thread() {
  thread_body(thread_parameters);
  current->state = State::kReturned;
  suspend_fiber(current->rank, true);
}

// Names are compared by address: equal literals of a library have one address.
bool same_place(const Thread& a, const Thread& b) {
  return a.state == b.state && a.mask == b.mask && a.site.line == b.site.line &&
         a.site.file == b.site.file && a.operation == b.operation;
}

// Whether all lanes of a thread's mask wait at the same place as the thread.
bool all_lanes_are_at(const Thread& self) {
  const Thread* const warp = &self - self.rank % warpSize;
  for (uint32_t mask = self.mask; mask; mask &= mask - 1) {
    if (!same_place(warp[__builtin_ctz(mask)], self)) return false;
  }
  return true;
}

// The state of a thread, for messages.
std::string describe(const Thread& thread) {
  if (thread.state == State::kReturned) return "returned";
  if (thread.state == State::kReady) return "can run";
  char text[256];
  char mask[32] = "";
  if (thread.state == State::kAtWarpSync) {
    std::snprintf(mask, sizeof mask, " with mask 0x%08x", thread.mask);
  }
  std::snprintf(text, sizeof text, "wait in %s%s at %s:%d", thread.operation, mask,
                base_name(thread.site.file), thread.site.line);
  return text;
}

// Called when threads wait and none can run: fails with the kind of fault, and who waits where.
[[noreturn]] void fail_stuck() {
  const char* kind = "divergent barrier";
  bool returned = false, at_warp = false, mask_returned = false;
  for (unsigned i = 0; i < thread_count; ++i) {
    returned |= threads[i].state == State::kReturned;
    if (threads[i].state != State::kAtWarpSync) continue;
    at_warp = true;
    for (unsigned k = 0; k < warpSize; ++k) {
      const unsigned other = i / warpSize * warpSize + k;
      mask_returned |= threads[i].mask >> k & 1 && threads[other].state == State::kReturned;
    }
  }
  if (at_warp ? mask_returned : returned) {
    kind = "early return";
  } else if (at_warp) {
    kind = "divergent mask";
  }
  std::vector<std::pair<std::string, std::string>> groups;  // (state, threads)
  for (unsigned i = 0, end; i < thread_count; i = end) {
    const std::string does = describe(threads[i]);
    for (end = i + 1; end < thread_count && describe(threads[end]) == does; ++end) {
    }
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& known) { return known.first == does; });
    if (group == groups.end()) group = groups.insert(group, {does, ""});
    group->second += group->second.empty() ? "threads " : ", ";
    group->second += std::to_string(i) + "-" + std::to_string(end - 1);
  }
  std::string text;
  for (const auto& [does, who] : groups) text += (text.empty() ? "" : "; ") + who + " " + does;
  fail(kind, "%s", text.c_str());
}

void check_launch(const Launch& launch) {
  const dim3 grid = launch.config.grid, block = launch.config.block;
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (count == 0 || count > kMaxThreadsPerBlock || block.z > 64) {
    fail("launch", "a thread block of %u x %u x %u threads; the limit is %u", block.x, block.y,
         block.z, kMaxThreadsPerBlock);
  }
  if (uint64_t(grid.x) * grid.y * grid.z == 0 || grid.x > 0x7fffffff || grid.y > 0xffff ||
      grid.z > 0xffff) {
    fail("launch", "a grid of %u x %u x %u thread blocks", grid.x, grid.y, grid.z);
  }
  size_t allowed = kDynamicByDefault;
  for (const auto& [kernel, bytes] : allowed_dynamic) {
    if (kernel == launch.kernel) allowed = bytes;  // the last call counts
  }
  if (launch.config.shared_bytes > allowed) {
    fail("launch", "%zu bytes of dynamic shared memory; the kernel is allowed %zu",
         launch.config.shared_bytes, allowed);
  }
}

void run_block() {
  const dim3 block = running.config.block;
  begin_shared_memory(running.config.shared_bytes);
  order_block(thread_count);
  arrived = 0;
  num_true = 0;
  std::fill_n(ready, kWords, 0);
  for (unsigned rank = 0; rank < thread_count; ++rank) {
    Thread& thread = threads[rank];
    thread.index = {rank % block.x, rank / block.x % block.y, rank / block.x / block.y};
    thread.rank = rank;
    make_ready(thread);
    start_fiber(rank, run_thread);
  }
  while (Thread* const thread = choose()) {
    current = thread;
    resume_fiber(thread->rank);
    current = nullptr;
    if (has_overflown(thread->rank)) fail("stack", "thread %u has used it up", thread->rank);
    if (!fault.empty()) throw Fault{std::exchange(fault, {})};
  }
  for (unsigned rank = 0; rank < thread_count; ++rank) {
    if (threads[rank].state != State::kReturned) fail_stuck();
  }
  check_canaries();
}

}  // namespace

const char* base_name(const char* path) {
  const char* const slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void fail(const char* kind, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string message = std::string(kind) + ": " + text;
  if (running.name) {
    const uint3 block = running.block_index;
    std::snprintf(text, sizeof text, " (kernel %s, block %u %u %u)", running.name, block.x, block.y,
                  block.z);
    message += text;
  }
  if (!current) throw Fault{message};
  // No exception passes through device code: the compiler assumes that instrumentation does not
  // throw. The fiber is abandoned.
  fault = std::move(message);
  suspend_fiber(current->rank, true);
  __builtin_unreachable();
}

void allow_dynamic_shared(const void* kernel, size_t bytes) {
  if (bytes > settings.shared_limit) {
    fail("launch", "%zu bytes of dynamic shared memory; the limit is %zu", bytes,
         settings.shared_limit);
  }
  allowed_dynamic.emplace_back(kernel, bytes);
}

int run_guarded(void (*launches)(const void*), const void* parameters) {
  // The last run may have ended with a fault.
  current = nullptr;
  running = {};
  allowed_dynamic.clear();
  try {
    launches(parameters);
    return 0;
  } catch (const Fault& found) {
    last_fault = found.message;
    return 1;
  }
}

void run(const Launch& launch, void (*body)(const void*), const void* parameters) {
  running = launch;
  check_launch(launch);
  const dim3 grid = launch.config.grid, block = launch.config.block;
  thread_count = block.x * block.y * block.z;
  thread_body = body;
  thread_parameters = parameters;
  random_state = settings.seed;
  order_launch();
  std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (settings.order == Order::kDescending) std::reverse(blocks.begin(), blocks.end());
  if (settings.order == Order::kRandom) {
    for (size_t i = blocks.size(); i > 1; --i) {
      std::swap(blocks[i - 1], blocks[random_number() % i]);
    }
  }
  for (const unsigned i : blocks) {
    running.block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block();
  }
  running = {};
}

bool skipped(Site site) {
  if (site.line != settings.skipped_line) return false;
  const std::string_view file(site.file), end(settings.skipped_file);
  return file.size() >= end.size() && file.substr(file.size() - end.size()) == end;
}

int wait_for_block(const char* operation, bool predicate, Site site) {
  Thread& self = *current;
  self.operation = operation;
  self.site = site;
  self.mask = 0;
  num_true += predicate;
  self.state = State::kAtBarrier;
  if (++arrived == thread_count) {
    for (unsigned i = 0; i < thread_count; ++i) {
      if (!same_place(threads[i], self)) fail_stuck();
    }
    for (unsigned i = 0; i < thread_count; ++i) make_ready(threads[i]);
    arrived = 0;
    last_num_true = std::exchange(num_true, 0);
    order_barrier();
  }
  suspend_fiber(self.rank);
  return last_num_true;
}

const uint64_t* wait_for_warp(const char* operation, uint32_t mask, uint64_t value,
                              bool orders_memory, Site site) {
  Thread& self = *current;
  const unsigned lane = self.rank % warpSize, first = self.rank - lane;
  const unsigned lanes = std::min<unsigned>(warpSize, thread_count - first);
  if (!(mask >> lane & 1)) {
    fail("divergent mask", "lane %u calls %s at %s:%d with mask 0x%08x, which leaves it out", lane,
         operation, base_name(site.file), site.line, mask);
  }
  if (lanes < warpSize && mask >> lanes) {
    fail("divergent mask", "%s at %s:%d has the mask 0x%08x in a warp of %u threads", operation,
         base_name(site.file), site.line, mask, lanes);
  }
  self.operation = operation;
  self.site = site;
  self.mask = mask;
  self.value = value;
  self.state = State::kAtWarpSync;
  if (all_lanes_are_at(self)) {
    for (unsigned i = 0; i < lanes; ++i) {
      if (!(mask >> i & 1)) continue;
      Thread& receiver = threads[first + i];
      for (unsigned k = 0; k < lanes; ++k) receiver.received[k] = threads[first + k].value;
      make_ready(receiver);
    }
    if (orders_memory) order_warp(first, mask);
  }
  suspend_fiber(self.rank);
  return self.received;
}

}  // namespace simt

SIMT_EXPORT void simt_configure(int order, uint64_t seed, int poison, size_t shared_limit,
                                int checked, const char* skipped_file, int skipped_line) {
  simt::settings = {simt::Order(order), seed,         static_cast<unsigned char>(poison),
                    shared_limit,       checked != 0, skipped_file,
                    skipped_line};
}
SIMT_EXPORT const char* simt_fault() { return simt::last_fault.c_str(); }
SIMT_EXPORT void simt_add_array(int number, const void* begin, size_t bytes) {
  simt::add_array(number, begin, bytes);
}
SIMT_EXPORT void simt_forget_arrays() { simt::forget_arrays(); }
