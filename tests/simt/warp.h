// The intrinsics that exchange values between the lanes of a warp.
#pragma once

#include <cstring>
#include <type_traits>

#include "runtime.h"

namespace simt {

inline unsigned lane() { return current->rank % warpSize; }

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "registers of 4 or 8 bytes are exchanged");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The value of lane `source`, or the lane's own value if `source` is outside of [begin, end).
template <typename T>
T shuffle(const char* operation, uint32_t mask, T value, int source, int begin, int end,
          Site site) {
  const uint64_t* values = wait_for_warp(operation, mask, to_bits(value), false, site);
  if (source < begin || source >= end) return value;
  if (!(mask >> source & 1)) {
    fail("divergent mask", "%s at %s:%d reads lane %d, which its mask 0x%08x leaves out", operation,
         base_name(site.file), site.line, source, mask);
  }
  return from_bits<T>(values[source]);
}

// Combines the values of the mask's lanes.
template <typename T, typename F>
T reduce(const char* operation, uint32_t mask, T value, Site site, F combine) {
  const uint64_t* values = wait_for_warp(operation, mask, to_bits(value), false, site);
  unsigned i = __builtin_ctz(mask);
  T result = from_bits<T>(values[i]);
  for (mask &= mask - 1; mask; mask &= mask - 1) {
    i = __builtin_ctz(mask);
    result = combine(result, from_bits<T>(values[i]));
  }
  return result;
}

inline unsigned ballot(const char* operation, uint32_t mask, int predicate, Site site) {
  const uint64_t* values = wait_for_warp(operation, mask, predicate != 0, false, site);
  unsigned votes = 0;
  for (unsigned i = 0; i < warpSize; ++i) {
    if (mask >> i & 1) votes |= unsigned(values[i]) << i;
  }
  return votes;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              simt::Site site = simt::Site::here()) {
  const int lane = simt::lane(), begin = lane - lane % width;
  return simt::shuffle("__shfl_sync", mask, value, begin + (source & (width - 1)), begin,
                       begin + width, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 simt::Site site = simt::Site::here()) {
  const int lane = simt::lane(), begin = lane - lane % width;
  return simt::shuffle("__shfl_up_sync", mask, value, lane - int(delta), begin, begin + width,
                       site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   simt::Site site = simt::Site::here()) {
  const int lane = simt::lane(), begin = lane - lane % width;
  return simt::shuffle("__shfl_down_sync", mask, value, lane + int(delta), begin, begin + width,
                       site);
}
// As on the hardware, lanes of lower segments can be read, those of higher segments cannot.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  simt::Site site = simt::Site::here()) {
  const int lane = simt::lane(), begin = lane - lane % width;
  return simt::shuffle("__shfl_xor_sync", mask, value, lane ^ lane_mask, 0, begin + width, site);
}

inline void __syncwarp(unsigned mask = 0xffffffff, simt::Site site = simt::Site::here()) {
  if (!simt::skipped(site)) simt::wait_for_warp("__syncwarp", mask, 0, true, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::ballot("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::ballot("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::ballot("__all_sync", mask, predicate, site) == mask;
}

#define SIMT_REDUCE(name, T, expression)                                                     \
  inline T name(unsigned mask, T value, simt::Site site = simt::Site::here()) {              \
    return simt::reduce(#name, mask, value, site, [](T a, T b) -> T { return expression; }); \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_add_sync, int, int(unsigned(a) + unsigned(b)))
SIMT_REDUCE(__reduce_min_sync, unsigned, b < a ? b : a)
SIMT_REDUCE(__reduce_min_sync, int, b < a ? b : a)
SIMT_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
SIMT_REDUCE(__reduce_max_sync, int, a < b ? b : a)
SIMT_REDUCE(__reduce_and_sync, unsigned, a& b)
SIMT_REDUCE(__reduce_or_sync, unsigned, a | b)
SIMT_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef SIMT_REDUCE
