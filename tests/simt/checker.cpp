#include "checker.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "atomics.h"
#include "fiber.h"
#include "host.h"
#include "runtime.h"
#include "shared_memory.h"

// The linker's names for the first and the last byte of this library.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;
extern "C" __attribute__((visibility("hidden"))) const char _end;

namespace simt {
namespace {

// An epoch lasts from one barrier of a thread block to the next. Epochs never repeat, so that their
// number also identifies the launch and the thread block.
uint32_t epoch = 1, first_of_launch = 1, first_of_block = 1;

// Within an epoch, barriers order lanes of a warp. Thread a has seen what the thread in lane b of
// its warp did up to the time clocks[a][b].
uint32_t clocks[kMaxThreadsPerBlock][warpSize];

// Two thread blocks are ordered if one releases (fence, then atomic operation) and the other
// acquires (atomic operation on the same address). A thread releases what its thread block did
// before the last barrier, and what it did itself after that.
struct Release {
  const void* address;
  uint32_t epoch;
  unsigned thread;
};
std::vector<Release> releases;
Release acquired;
bool fenced[kMaxThreadsPerBlock];

struct Access {
  uint32_t epoch, clock;  // epoch 0: never
  uint16_t thread;
  bool atomic;
  const void* code;
};

// Of many unordered readers two are kept: the last one and the one farthest from it. If a later
// write is unordered with any reader, it is unordered with one of these two, except under partial
// masks.
struct Cell {
  Access write, reads[2];
};

struct Region {
  int number;
  const char* begin;
  size_t bytes;
  Cell* cells;  // one per byte, initially zero; the system provides pages on access
};
std::vector<Region> arrays;

Cell* map_cells(size_t bytes) {
  void* found = mmap(nullptr, bytes * sizeof(Cell), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) fail("checker", "no memory to watch %zu bytes", bytes);
  return static_cast<Cell*>(found);
}

// Whether barriers order an access before what the current thread does now.
bool ordered(const Access& before, bool in_shared) {
  if (before.epoch < (in_shared ? first_of_block : first_of_launch)) return true;
  if (before.epoch < first_of_block) {
    return before.epoch < acquired.epoch ||
           (before.epoch == acquired.epoch && before.thread == acquired.thread);
  }
  if (before.epoch < epoch || before.thread == current->rank) return true;
  return before.thread / warpSize == current->rank / warpSize &&
         clocks[current->rank][before.thread % warpSize] >= before.clock;
}

// A code address as an offset into the library. The caller looks up its line.
ptrdiff_t offset_of(const void* code) { return static_cast<const char*>(code) - &__ehdr_start; }

// A checked byte: in an array, or in a declaration of shared memory.
struct Place {
  const Region* region;
  const Allocation* shared;
  size_t byte;
};

std::string describe(const Place& place) {
  if (!place.shared) {
    return "byte " + std::to_string(place.byte) + " of argument " +
           std::to_string(place.region->number);
  }
  const size_t byte = place.region->begin + place.byte - place.shared->place;
  return "byte " + std::to_string(byte) + " of " + place.shared->name;
}

[[noreturn]] void fail_race(const Place& place, const Access& before, const Access& now,
                            bool write) {
  const char* const other = before.epoch < first_of_block ? " of another block" : "";
  fail("race", "thread %u %s %s at {+0x%tx}, and nothing orders it after thread %u%s at {+0x%tx}",
       now.thread, write ? "writes" : "reads", describe(place).c_str(), offset_of(now.code),
       before.thread, other, offset_of(before.code));
}

// How far the thread of an unordered access is from this one; 0 for an ordered access.
int distance(const Access& other, bool in_shared) {
  if (ordered(other, in_shared)) return 0;
  if (other.epoch < first_of_block) return 3;
  return other.thread / warpSize == current->rank / warpSize ? 1 : 2;
}

void check(const Place& place, const Access& now, bool write) {
  Cell& cell = place.region->cells[place.byte];
  const bool in_shared = place.shared;
  if (!(now.atomic && cell.write.atomic) && !ordered(cell.write, in_shared)) {
    fail_race(place, cell.write, now, write);
  }
  if (write) {
    for (const Access& read : cell.reads) {
      if (!ordered(read, in_shared)) fail_race(place, read, now, write);
    }
    cell.write = now;
  } else {
    if (distance(cell.reads[0], in_shared) >= distance(cell.reads[1], in_shared)) {
      cell.reads[1] = cell.reads[0];
    }
    cell.reads[0] = now;
  }
}

[[noreturn]] void fail_bounds(const char* kind, const char* name, ptrdiff_t byte, size_t bytes,
                              bool write, const void* code) {
  fail(kind, "thread %u %s byte %td of %s, which has %zu, at {+0x%tx}", current->rank,
       write ? "writes" : "reads", byte, name, bytes, offset_of(code));
}

// The array that contains an address, or else the nearest one.
const Region& nearest_array(const char* p) {
  const auto distance = [p](const Region& array) {
    return std::max(array.begin - p, p - array.begin - ptrdiff_t(array.bytes) + 1);
  };
  if (arrays.empty()) fail("global bounds", "there are no arrays");
  return *std::min_element(arrays.begin(), arrays.end(), [&](const Region& a, const Region& b) {
    return distance(a) < distance(b);
  });
}

// `caller` is the return address of the instrumentation.
void access(const void* address, size_t bytes, bool write, bool atomic, const void* caller) {
  if (!current || !settings.checked) return;
  const char* const p = static_cast<const char*>(address);
  const void* const code = static_cast<const char*>(caller) - 1;
  Place place{};
  if (in_shared_arena(p)) {
    const Allocation& found = nearest_shared(p);
    if (p < found.place || p + bytes > found.place + found.bytes) {
      fail_bounds("shared bounds", found.name, p - found.place, found.bytes, write, code);
    }
    static const Region arena{0, shared_arena(), shared_arena_bytes(),
                              map_cells(shared_arena_bytes())};
    place = {&arena, &found, size_t(p - arena.begin)};
  } else if (on_fiber_stack(p) || (p >= &__ehdr_start && p < &_end)) {
    return;  // the thread's stack, and constants
  } else {
    const Region& found = nearest_array(p);
    if (p < found.begin || p + bytes > found.begin + found.bytes) {
      const std::string name = "argument " + std::to_string(found.number);
      fail_bounds("global bounds", name.c_str(), p - found.begin, found.bytes, write, code);
    }
    place = {&found, nullptr, size_t(p - found.begin)};
  }
  const unsigned thread = current->rank;
  const Access now{epoch, clocks[thread][thread % warpSize], uint16_t(thread), atomic, code};
  for (const size_t end = place.byte + bytes; place.byte < end; ++place.byte) {
    if (place.shared && (!write || atomic) &&
        place.region->cells[place.byte].write.epoch < first_of_block) {
      fail("uninitialised", "thread %u reads %s, not written in this block, at {+0x%tx}", thread,
           describe(place).c_str(), offset_of(code));
    }
    check(place, now, write);
  }
}

}  // namespace

void add_array(int number, const void* begin, size_t bytes) {
  arrays.push_back({number, static_cast<const char*>(begin), bytes, map_cells(bytes + 1)});
}

void forget_arrays() {
  for (const Region& array : arrays) munmap(array.cells, (array.bytes + 1) * sizeof(Cell));
  arrays.clear();
}

void order_launch() {
  first_of_launch = first_of_block = ++epoch;
  releases.clear();
}

void order_block(unsigned threads) {
  first_of_block = ++epoch;
  acquired = {};
  for (unsigned i = 0; i < threads; ++i) {
    std::fill_n(clocks[i], warpSize, 0);
    clocks[i][i % warpSize] = 1;
    fenced[i] = false;
  }
}

void order_barrier() { ++epoch; }

void order_warp(unsigned first_rank, uint32_t mask) {
  uint32_t latest[warpSize] = {};
  for (int i = 0; i < warpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    for (int k = 0; k < warpSize; ++k) latest[k] = std::max(latest[k], clocks[first_rank + i][k]);
  }
  for (int i = 0; i < warpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    std::copy_n(latest, warpSize, clocks[first_rank + i]);
    ++clocks[first_rank + i][i];
  }
}

void note_fence() { fenced[current->rank] = true; }

void note_atomic(const void* address, size_t bytes, const void* caller) {
  if (!settings.checked) return;
  const auto same = [&](const Release& release) { return release.address == address; };
  auto release = std::find_if(releases.begin(), releases.end(), same);
  if (release != releases.end() && release->epoch > acquired.epoch) acquired = *release;
  if (fenced[current->rank]) {
    if (release == releases.end()) release = releases.insert(release, {address, 0, 0});
    *release = {address, epoch, current->rank};
  }
  access(address, bytes, true, true, caller);
}

}  // namespace simt

// The part that we need of what -fsanitize=alignment passes.
struct SimtMisaligned {
  const char* file;
  uint32_t line;
};

// The calls that the compiler inserts. They return to the instruction after the access.
extern "C" {
#define SIMT_ACCESS(name, bytes, write)                                      \
  void name(const void* address) {                                           \
    simt::access(address, bytes, write, false, __builtin_return_address(0)); \
  }
#define SIMT_ACCESSES(bytes)                              \
  SIMT_ACCESS(__tsan_read##bytes, bytes, false)           \
  SIMT_ACCESS(__tsan_write##bytes, bytes, true)           \
  SIMT_ACCESS(__tsan_unaligned_read##bytes, bytes, false) \
  SIMT_ACCESS(__tsan_unaligned_write##bytes, bytes, true)
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
void __tsan_read_range(const void* address, size_t bytes) {
  simt::access(address, bytes, false, false, __builtin_return_address(0));
}
void __tsan_write_range(const void* address, size_t bytes) {
  simt::access(address, bytes, true, false, __builtin_return_address(0));
}
void __ubsan_handle_type_mismatch_v1(const SimtMisaligned* where, const void* address) {
  if (!simt::current || !simt::settings.checked) return;
  simt::fail("misaligned", "thread %u accesses %p at %s:%u", simt::current->rank, address,
             simt::base_name(where->file), where->line);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
