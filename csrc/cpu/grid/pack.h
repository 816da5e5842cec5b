// Packs a whole grid: decoded [N][D], log_weight [N] and latent_energy [N] into blocks (grid.h).
#pragma once

#include "../../problem.h"
#include "block.h"
#include "sort.h"

LEBM_BEGIN_TARGET

// The place of the latent of most weight (the first of equals) among those of finite energy. -1 if
// there is none, and without log-weights.
template <typename T>
static int64_t heaviest(const Grid<T>& grid) {
  int64_t place = -1;
  T most = T(0);
  for (int64_t i = 0; grid.weighted && i < grid.num_blocks; ++i) {
    const Block<T> block = grid.at(i);
    for (int64_t j = 0; j < grid.block; ++j) {
      if (block.r[j] == kAbsent<T> || !(block.w[j] > most)) continue;
      most = block.w[j];
      place = i * grid.block + j;
    }
  }
  return place;
}

template <typename T>
static void pack_blocks(const Problem<T>& p, int64_t b, double largest, BlockFlags* flags,
                        const Parallel& parallel, Grid<T>& grid) {
  const T* latents = p.decoded.at(b, 0);
  const int64_t size = grid.D * grid.block;
  auto pack_one = [&](int64_t i) {
    const bool full = grid.plain && (i + 1) * grid.block <= grid.N;
    if (full && pack_whole_block(latents + i * size, grid, i, grid.g + i * size, grid.v + i * size))
      flags[i] = {false, false, 0.0, 0.0};
    else
      flags[i] = pack_block(p, b, largest, grid, i);
  };
  if (grid.streamed) {
    // The last block is written down. If another one is not whole, the caller does without streams.
    const int64_t last = grid.num_blocks - 1;
    const int64_t most = grid.bounded ? 8 * parallel.threads : 0;
    const int64_t num_ranges = last < most ? last : most;
    for_each(parallel, num_ranges, [&](int64_t range) {
      Scratch scratch(grid.scratch_bytes());
      auto* unpacked = static_cast<T*>(scratch.get());
      for (int64_t i = last * range / num_ranges; i < last * (range + 1) / num_ranges; ++i) {
        const bool whole = pack_whole_block(latents + i * size, grid, i, unpacked, unpacked + size);
        flags[i] = {false, !whole, 0.0, 0.0};
      }
    });
    flags[last] = pack_block(p, b, largest, grid, last);
  } else {
    for_each(parallel, grid.num_blocks, pack_one);
  }
  // Streamed blocks without bounds are all whole, or the grid is not used.
  const int64_t unbounded = grid.bounded ? 0 : grid.num_blocks - 1;
  Total<T> total{};
  total += double(unbounded * grid.block);
  grid.r_low = __builtin_inf();
  grid.r_high = -__builtin_inf();
  for (int64_t d = 0; d < p.D; ++d) {
    grid.box_low[d] = kAbsent<T>;
    grid.box_high[d] = -kAbsent<T>;
  }
  // No weight left, or an infinite one: nothing can be normalised.
  grid.has_nan = !is_finite(largest);
  grid.has_infinite = false;
  for (int64_t i = unbounded; i < grid.num_blocks; ++i) {
    total += grid.block_weight[i];
    grid.has_nan |= flags[i].has_nan;
    grid.has_infinite |= flags[i].has_infinite;
    grid.r_low = flags[i].r_low < grid.r_low ? flags[i].r_low : grid.r_low;
    grid.r_high = flags[i].r_high > grid.r_high ? flags[i].r_high : grid.r_high;
    for (int64_t d = 0; d < p.D; ++d) {
      const T low = grid.low[i * p.D + d], high = grid.high[i * p.D + d];
      grid.box_low[d] = low < grid.box_low[d] ? low : grid.box_low[d];
      grid.box_high[d] = high > grid.box_high[d] ? high : grid.box_high[d];
    }
  }
  grid.total = total;
}

// Packs grid b, see Packed. Without `bounded`, streamed blocks get their bounds from bounded_block,
// and the grid has none.
template <typename T>
static Grid<T> pack(const Problem<T>& p, int64_t b, void* memory, BlockFlags* flags, void* order,
                    const Parallel& parallel, bool streamed, bool bounded = true) {
  Grid<T> grid = lay_out(p, memory, streamed);
  grid.bounded = bounded;
  grid.plain = is_plain(p);
  grid.leaves = has_leaves(p);
  grid.streamed = streamed ? p.decoded.at(b, 0) : nullptr;
  fill(grid.zeros, grid.block, T(0));
  fill(grid.ones, grid.block, T(1));
  grid.weighted = p.log_weight.data != nullptr;
  double largest = grid.weighted ? -__builtin_inf() : 0.0;
  for (int64_t n = 0; grid.weighted && n < p.N; ++n) {
    const double l = *p.log_weight.at(b, n);
    if (l > largest) largest = l;
  }
  pack_blocks(p, b, largest, flags, parallel, grid);
  if (order && !grid.has_nan && is_loose(grid)) {
    grid.order = sort_by_place(p.decoded, b, p.N, p.D, grid.block, order, parallel);
    grid.plain = false;
    pack_blocks(p, b, largest, flags, parallel, grid);
  }
  return grid;
}

// Grid b, packed in `memory`. `flags` is scratch memory, one for each block; `order` is scratch
// memory for sort_by_place, or null where the latents must stay as given. A streamed grid that
// turns out to have infinite latents, or latents too far apart to be summed, is packed again
// without streams, in memory of its own.
template <typename T>
struct Packed {
  Grid<T> grid;
  Scratch written;

  Packed(const Problem<T>& p, int64_t b, void* memory, BlockFlags* flags, void* order,
         const Parallel& parallel)
      : grid(pack(p, b, memory, flags, order, parallel, streams(p))),
        written(serves() ? 0 : grid_bytes(p, false)) {
    if (!serves()) grid = pack(p, b, written.get(), flags, nullptr, parallel, false);
  }

 private:
  bool serves() const { return !(grid.streamed && grid.has_infinite); }
};

LEBM_END_TARGET
