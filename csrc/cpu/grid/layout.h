// How large the blocks of a grid are, and where its arrays lie in memory.
#pragma once

#include "../../problem.h"
#include "grid.h"

LEBM_BEGIN_TARGET

constexpr int64_t kMostLatents = 512, kLeaf = 128;

// Fewer queries don't pay for series (see series/layers.h).
constexpr int64_t kSeriesQueries = 512;

// Whether the queries of a grid agree in what series depend on, and are enough to pay for them. The
// grid is then packed in leaves.
template <typename T>
static bool has_leaves(const Problem<T>& p) {
  return p.D <= 2 && p.M >= kSeriesQueries && p.N > kLeaf && !p.log_weight.data &&
         p.beta.stride[1] == 0 && (!p.scale.data || p.scale.stride[1] == 0);
}

// A multiple of the latents that a loop takes at a time on any instruction set: two vectors.
constexpr int64_t kSmallestBlock = 32;

// 512 latents at D <= 4; fewer where a block would outgrow the caches, or would not be filled. At D
// > 4 a multiple of two and of three vectors of any instruction set, and no power of two: with one,
// the rows of a block would compete for the same sets of the first cache.
template <typename T>
static int64_t block_size(const Problem<T>& p) {
  if (has_leaves(p)) return kLeaf;
  const bool few = p.D <= kNarrow;
  const int64_t most = few ? kMostLatents : p.D <= 16 ? 384 : p.D <= 128 ? 192 : 96;
  const int64_t unit = few ? kSmallestBlock : 96, filled = (p.N + unit - 1) / unit * unit;
  return filled < most ? filled : most;
}

template <typename T>
static bool is_plain(const Problem<T>& p) {
  return p.D <= kNarrow && !p.log_weight.data && !p.latent_energy.data &&
         (p.D == 1 || p.decoded.stride[2] == 1) && p.decoded.stride[1] == p.D;
}

// Whether the grid is streamed: it would leave the caches, and the queries are so few that
// unpacking it for each of their tiles costs little.
template <typename T>
static bool streams(const Problem<T>& p) {
  return is_plain(p) && p.M <= 64 && p.N >= 8 * kMostLatents;
}

template <typename T>
static int64_t num_blocks(const Problem<T>& p) {
  return (p.N + block_size(p) - 1) / block_size(p);
}

template <typename T>
static size_t grid_bytes(const Problem<T>& p, bool streamed) {
  const int64_t D = p.D, block = block_size(p), blocks = num_blocks(p);
  const int64_t size = (streamed ? 1 : blocks) * block;
  const int64_t of_latent = 2 * D + row_length<T>(D) + (D < kProductDimensions ? 0 : 1) + 3;
  return sizeof(T) * (size_t)(size * of_latent + 2 * block + blocks * (4 * D + 3) + 2 * D) +
         (sizeof(double) + 1) * (size_t)blocks + 64;
}

template <typename T>
static Grid<T> lay_out(const Problem<T>& p, void* memory, bool streamed) {
  const int64_t D = p.D;
  Grid<T> grid{};
  grid.N = p.N;
  grid.D = D;
  grid.block = block_size(p);
  grid.num_blocks = num_blocks(p);
  const int64_t size = (streamed ? 1 : grid.num_blocks) * grid.block;
  grid.block_weight = static_cast<double*>(memory);
  // A vector across two cache lines costs twice.
  const size_t address = reinterpret_cast<size_t>(grid.block_weight + grid.num_blocks);
  T* next = reinterpret_cast<T*>(padded(address));
  auto take = [&](int64_t count) {
    T* taken = next;
    next += count;
    return taken;
  };
  grid.g = take(size * D);
  grid.v = take(size * D);
  grid.rows = take(size * row_length<T>(D));
  grid.square = take(D < kProductDimensions ? 0 : size);
  grid.r = take(size);
  grid.log2_w = take(size);
  grid.w = take(size);
  grid.zeros = take(grid.block);
  grid.ones = take(grid.block);
  grid.centre = take(grid.num_blocks * D);
  grid.low = take(grid.num_blocks * D);
  grid.high = take(grid.num_blocks * D);
  grid.half = take(grid.num_blocks * D);
  grid.extent = take(grid.num_blocks);
  grid.r_floor = take(grid.num_blocks);
  grid.r_top = take(grid.num_blocks);
  grid.box_low = take(D);
  grid.box_high = take(D);
  grid.whole = reinterpret_cast<bool*>(next);
  return grid;
}

LEBM_END_TARGET
