// Sorts latents or queries by place, where that pays.
#pragma once

#include "../../problem.h"
#include "layout.h"
#include "order.h"

LEBM_BEGIN_TARGET

// Whether the blocks are much larger than neighbours in space would make them: if a grid's box is
// cut into num_blocks cubes, their sides are num_blocks^(1/D) times smaller.
template <typename T>
static bool is_loose(const Grid<T>& grid) {
  double mean = 0, box = 0;
  for (int64_t i = 0; i < grid.num_blocks; ++i) mean += grid.extent[i] / double(grid.num_blocks);
  for (int64_t d = 0; d < grid.D; ++d) {
    const double side = 0.5 * (double(grid.box_high[d]) - double(grid.box_low[d]));
    box += side * side;
  }
  return mean > 4 * box * __builtin_pow(double(grid.num_blocks), -2.0 / double(grid.D));
}

// Sorting pays where the latents meet many queries.
template <typename T>
static bool sorts(const Problem<T>& p) {
  return p.D <= 3 && p.M >= 256 && p.N > 2 * kMostLatents && p.N < int64_t(1) << 32 &&
         !p.log_weight.data;
}

static size_t order_bytes(int64_t count) {
  return padded(size_t(count) * sizeof(int64_t)) + padded(size_t(count) * sizeof(Place));
}

// An order of the `count` points of grid b, in `memory`, in which each block of `block` points is
// compact (see order.h).
template <typename T>
static int64_t* sort_by_place(const View<T>& points, int64_t b, int64_t count, int64_t D,
                              int64_t block, void* memory, const Parallel& parallel) {
  auto* order = static_cast<int64_t*>(memory);
  auto* places = reinterpret_cast<Place*>(static_cast<char*>(memory) +
                                          padded(size_t(count) * sizeof(int64_t)));
  for (int64_t i = 0; i < count; ++i) {
    places[i].index = uint32_t(i);
    for (int64_t d = 0; d < D; ++d) {
      const double x = points.at(b, i)[d * points.stride[2]];
      // A coordinate that is not finite belongs to a point that does not count.
      places[i].x[d] = is_finite(x) ? float(x) : 0.0f;
    }
  }
  order_in_blocks(places, count, int(D), block, parallel);
  for (int64_t i = 0; i < count; ++i) order[i] = places[i].index;
  return order;
}

LEBM_END_TARGET
