// The row pass over a whole problem: packs each grid, runs its passes on the threads, writes
// results.
//
//     rows: y [B, M, D], decoded [B, N, D], ... -> F [B, M], state [B, M, 4], slopes (problem.h)
#pragma once

#include "../grid/pack.h"
#include "finish.h"
#include "narrow.h"
#include "nearby.h"
#include "tile.h"
#include "wide.h"

LEBM_BEGIN_TARGET

// Whether the first pass takes energies one by one, at D <= 4: sums about a block's centre give
// neither the index of the least energy nor, where exponents are small, <E>. See kFewLatents too.
template <typename T>
static bool takes_energies(const Grid<T>& grid, const RowOutputs<T>& out) {
  return grid.has_few_latents() || out.index || out.energy;
}

template <typename T, int kD>
static void pass_at_level(const Pass<T>& pass, int layer, int64_t first_block, int64_t last_block,
                          int64_t count, Tile<T>& tile) {
  Grid<T> grid = *pass.grid;
  grid.scratch = static_cast<T*>(tile.block);
  if constexpr (kD > 0) {
    if (pass.settle >= 0) settle_gaps<T, kD>(grid, pass.settle, tile.sums, count, tile.queries);
    if (!grid.weighted) {
      auto sweep_at = [&](auto level) {
        NarrowTile<T, kD, level.value> sum_exponentials{
            grid,
            *pass.layers,
            layer,
            first_block,
            last_block,
            pass.log2_tol,
            pass.first && takes_energies(grid, *pass.out),
            tile.queries,
            count,
            tile.energy,
            tile.sums,
            tile.vectors,
            {}};
        sum_exponentials.run();
      };
      return pass.level == kSumOnly ? sweep_at(Constant<Level, kSumOnly>{})
             : pass.level == kMean  ? sweep_at(Constant<Level, kMean>{})
                                    : sweep_at(Constant<Level, kAllMoments>{});
    }
  }
  auto sweep_at = [&](auto level) {
    if constexpr (kD > 0) {
      pass_one_by_one<T, kD, level.value>(grid, first_block, last_block, tile.queries, count,
                                          tile.energy, tile.sums, tile.vectors);
    } else {
      pass_over_wide_tile<T, level.value>(grid, first_block, last_block,
                                          pass.problem->scale.data != nullptr,
                                          pass.first && pass.out->index, pass.settle, tile.queries,
                                          count, tile.energy, tile.sums, tile.vectors);
    }
  };
  pass.level == kSumOnly ? sweep_at(Constant<Level, kSumOnly>{})
  : pass.level == kMean  ? sweep_at(Constant<Level, kMean>{})
                         : sweep_at(Constant<Level, kAllMoments>{});
}

template <typename T>
static void pass_over_tile(const Pass<T>& pass, int layer, int64_t first_block, int64_t last_block,
                           int64_t count, Tile<T>& tile) {
  switch (pass.grid->D) {
    case 1:
      return pass_at_level<T, 1>(pass, layer, first_block, last_block, count, tile);
    case 2:
      return pass_at_level<T, 2>(pass, layer, first_block, last_block, count, tile);
    case 3:
      return pass_at_level<T, 3>(pass, layer, first_block, last_block, count, tile);
    case 4:
      return pass_at_level<T, 4>(pass, layer, first_block, last_block, count, tile);
    default:
      return pass_at_level<T, 0>(pass, layer, first_block, last_block, count, tile);
  }
}

// The number of splits of the latents, so that few queries still occupy every thread.
LEBM_INLINE int64_t num_latent_splits(int64_t tiles, int64_t blocks, const Parallel& parallel) {
  const int64_t wanted = 4 * parallel.threads;
  if (parallel.threads == 1 || tiles >= wanted || tiles == 0) return 1;
  const int64_t num_splits = (wanted + tiles - 1) / tiles, most = (blocks + 3) / 4;
  return num_splits < most ? num_splits : most;
}

// Runs a pass over its queries. The splits of a tile are merged in the order of their latents, so
// that the result depends on the number of threads but not on their timing.
template <typename T>
static void run(const Pass<T>& pass, const Parallel& parallel) {
  const Grid<T>& grid = *pass.grid;
  const int64_t size = tile_size(grid.D), tiles = (pass.count + size - 1) / size;
  const int64_t num_splits = num_latent_splits(tiles, grid.num_blocks, parallel);
  // A split has whole blocks of the widest layer that has enough of them.
  int layer = pass.layers->count - 1;
  while (layer > 0 && pass.layers->grid[layer].num_blocks < 2 * num_splits) --layer;
  auto split_start = [&](int64_t split) {
    const Grid<T>& wide = pass.layers->grid[layer];
    const int64_t start = wide.num_blocks * split / num_splits * (wide.block / grid.block);
    return start < grid.num_blocks ? start : grid.num_blocks;
  };
  const size_t bytes = Tile<T>::bytes(grid.D, grid.block) + grid.scratch_bytes();
  const size_t stride = (bytes + 63) / 64 * 64;
  auto count_of = [&](int64_t t) {
    return pass.count - t * size < size ? pass.count - t * size : size;
  };
  auto finish_tile = [&](int64_t t, Tile<T>& tile) {
    for (int64_t i = 0; i < count_of(t); ++i)
      finish(pass, pass.query_at(t * size + i), tile.queries[i], tile.sums[i], tile.vectors[i]);
  };
  if (num_splits == 1) {
    // Contiguous ranges of tiles, each with its own scratch memory.
    const int64_t num_ranges = tiles < 8 * parallel.threads ? tiles : 8 * parallel.threads;
    for_each(parallel, num_ranges, [&](int64_t range) {
      Scratch scratch(bytes);
      Tile<T> tile(scratch.get(), grid.D, grid.block);
      for (int64_t t = tiles * range / num_ranges; t < tiles * (range + 1) / num_ranges; ++t) {
        load_tile(pass, t * size, count_of(t), tile);
        pass_over_tile(pass, layer, 0, grid.num_blocks, count_of(t), tile);
        finish_tile(t, tile);
      }
    });
    return;
  }
  Scratch scratch(stride * size_t(tiles * num_splits));
  auto tile_at = [&](int64_t t, int64_t split) {
    char* memory = static_cast<char*>(scratch.get()) + stride * size_t(t * num_splits + split);
    return Tile<T>(memory, grid.D, grid.block);
  };
  for_each(parallel, tiles * num_splits, [&](int64_t i) {
    const int64_t t = i / num_splits, split = i % num_splits;
    Tile<T> tile = tile_at(t, split);
    load_tile(pass, t * size, count_of(t), tile);
    pass_over_tile(pass, layer, split_start(split), split_start(split + 1), count_of(t), tile);
  });
  for (int64_t t = 0; t < tiles; ++t) {
    Tile<T> merged = tile_at(t, 0);
    for (int64_t split = 1; split < num_splits; ++split) {
      Tile<T> other = tile_at(t, split);
      for (int64_t i = 0; i < count_of(t); ++i)
        merge(merged.queries[i], grid.weighted, merged.sums[i], merged.vectors[i], other.sums[i],
              other.vectors[i], grid.D);
    }
    finish_tile(t, merged);
  }
}

template <typename T>
static void rows_of_grid(const Problem<T>& p, const RowOutputs<T>& out, int64_t b, void* memory,
                         const Parallel& parallel) {
  auto* flags = static_cast<BlockFlags*>(memory);
  auto* query = reinterpret_cast<int64_t*>(flags + num_blocks(p));
  void* room = query + p.M;
  auto* regime = static_cast<unsigned char*>(room) + padded(grid_bytes(p, streams(p)));
  void* order = regime + padded(size_t(p.M));
  const Packed<T> packed(p, b, room, flags, sorts(p) ? order : nullptr, parallel);
  const Grid<T>& grid = packed.grid;
  const bool moments = out.slope_y || out.mean;
  const bool excess = out.slope_beta || out.energy || out.relative_entropy;
  const Level level = out.slope_scale || excess ? kAllMoments : moments ? kMean : kSumOnly;
  const double log2_tol = p.tol < 0 ? kLog2Rounding<T> : __builtin_log2(p.tol);
  const bool sorted = sorts_queries(p, b, grid, log2_tol);
  const Scratch order_memory(sorted ? order_bytes(p.M) : 0);
  const int64_t* by_place =
      sorted ? sort_by_place(p.y, b, p.M, p.D, kNarrowTile, order_memory.get(), parallel) : nullptr;
  // Nor do series give <E> of latent energies that differ.
  const bool in_series =
      !takes_energies(grid, out) && !(level == kAllMoments && grid.r_low != grid.r_high);
  const BuiltLayers<T> built(p, b, grid, in_series, parallel);
  Pass<T> pass{&p, &out, &grid, b, regime, by_place, p.M, &built.layers, level, log2_tol, true};
  run(pass, parallel);
  pass.first = false;
  pass.level = kSumOnly;
  pass.query = query;
  for (;;) {
    bool slopes = false;
    pass.count = 0;
    for (int64_t m = 0; m < p.M; ++m) {
      if (regime[m] != kSkip) query[pass.count++] = m;
      slopes |= regime[m] == kSlope;
    }
    if (pass.count == 0) return;
    pass.settle = slopes ? heaviest(grid) : -1;
    run(pass, parallel);
  }
}

template <typename T>
static void rows(const Problem<T>& p, const RowOutputs<T>& out, const Parallel& parallel) {
  const size_t bytes = size_t(num_blocks(p)) * sizeof(BlockFlags) + size_t(p.M) * sizeof(int64_t) +
                       padded(grid_bytes(p, streams(p))) + padded(size_t(p.M)) +
                       (sorts(p) ? order_bytes(p.N) : 0);
  each_grid(p.B, bytes, parallel, [&](int64_t b, void* memory, const Parallel& inner) {
    rows_of_grid(p, out, b, memory, inner);
  });
}

LEBM_END_TARGET
