#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "host.h"
#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)0)
#endif

namespace simt {
namespace {

constexpr size_t kArenaBytes = 1 << 20;
constexpr size_t kCanaryBytes = 1024;      // large: one row of a tile too far still hits it
constexpr size_t kStaticLimit = 48 << 10;  // nvcc's limit

alignas(128) char arena[kArenaBytes];
size_t used;                     // bytes, up to the end of the last canary
size_t taken, taken_statically;  // bytes that the kernel has allocated
unsigned serial;                 // of the thread block
std::vector<Allocation> allocations;

// Not the poison: a kernel that copies poison there would go unnoticed. But similar, so that
// results change if a kernel reads it.
unsigned char canary() { return settings.poison ^ 0x01; }

void* allocate(const char* name, size_t bytes, size_t alignment) {
  taken += bytes;
  if (taken > settings.shared_limit) {
    fail("launch", "%zu bytes of shared memory; the limit is %zu", taken, settings.shared_limit);
  }
  const size_t begin = (used + alignment - 1) / alignment * alignment, end = begin + bytes;
  if (end + kCanaryBytes > kArenaBytes) fail("launch", "the arena of shared memory is full");
  ASAN_UNPOISON_MEMORY_REGION(arena + used, end + kCanaryBytes - used);
  std::memset(arena + used, canary(), begin - used);
  std::memset(arena + begin, settings.poison, bytes);
  std::memset(arena + end, canary(), kCanaryBytes);
  ASAN_POISON_MEMORY_REGION(arena + used, begin - used);
  ASAN_POISON_MEMORY_REGION(arena + end, kCanaryBytes);
  used = end + kCanaryBytes;
  allocations.push_back({name, arena + begin, bytes});
  return arena + begin;
}

}  // namespace

void begin_shared_memory(size_t dynamic_bytes) {
  ++serial;
  allocations.clear();
  taken = taken_statically = 0;
  ASAN_UNPOISON_MEMORY_REGION(arena, kCanaryBytes);
  std::memset(arena, canary(), kCanaryBytes);
  ASAN_POISON_MEMORY_REGION(arena, kCanaryBytes);
  used = kCanaryBytes;
  allocate("dynamic shared memory", dynamic_bytes, 16);
}

void* dynamic_shared() { return allocations.front().place; }

void* static_shared(SharedSite& site, size_t bytes, size_t alignment) {
  if (site.block != serial) {
    taken_statically += bytes;
    if (taken_statically > kStaticLimit) {
      fail("launch", "%zu bytes of static shared memory; the limit is %zu", taken_statically,
           kStaticLimit);
    }
    site.block = serial;
    site.place = allocate(site.name, bytes, alignment);
  }
  return site.place;
}

void check_canaries() {
  ASAN_UNPOISON_MEMORY_REGION(arena, used);
  const char* from = arena;
  for (size_t i = 0; i <= allocations.size(); ++i) {
    const char* const to = i < allocations.size() ? allocations[i].place : arena + used;
    for (const char* p = from; p < to; ++p) {
      if (static_cast<unsigned char>(*p) == canary()) continue;
      const Allocation& nearest = nearest_shared(p);
      fail("shared bounds", "byte %td of %s was written, which has %zu", p - nearest.place,
           nearest.name, nearest.bytes);
    }
    if (i < allocations.size()) from = to + allocations[i].bytes;
  }
}

bool in_shared_arena(const void* address) {
  return address >= arena && address < arena + kArenaBytes;
}

const Allocation& nearest_shared(const void* address) {
  const char* const p = static_cast<const char*>(address);
  const auto distance = [p](const Allocation& allocation) {
    return std::max(allocation.place - p, p - allocation.place - ptrdiff_t(allocation.bytes) + 1);
  };
  return *std::min_element(
      allocations.begin(), allocations.end(),
      [&](const Allocation& a, const Allocation& b) { return distance(a) < distance(b); });
}

char* shared_arena() { return arena; }
size_t shared_arena_bytes() { return kArenaBytes; }

}  // namespace simt
