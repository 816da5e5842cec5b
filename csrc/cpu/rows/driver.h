// The row pass over a whole problem: packing, modes, threads, and what is made of the sums.
// Included inside an instruction set's namespace, after rows.h.
#pragma once

#include "../grid/pack.h"
#include "finish.h"
#include "narrow.h"
#include "nearby.h"
#include "tile.h"
#include "wide.h"

LEBM_BEGIN_TARGET

template <typename T, int kD>
static void sweep_level(const Pass<T>& pass, int layer, int64_t first_block, int64_t last_block,
                        int64_t count, Tile<T>& tile) {
  Grid<T> grid = *pass.grid;
  grid.scratch = static_cast<T*>(tile.block);
  if constexpr (kD > 0) {
    if (pass.settle >= 0) settle_gaps<T, kD>(grid, pass.settle, tile.sums, count, tile.queries);
    if (!grid.weighted) {
      auto sweep_at = [&](auto level) {
        TileSweep<T, kD, level.value> sweep{grid,
                                            *pass.layers,
                                            layer,
                                            first_block,
                                            last_block,
                                            pass.unseen,
                                            pass.first && pass.out->index,
                                            tile.queries,
                                            count,
                                            tile.energy,
                                            tile.sums,
                                            tile.vectors,
                                            {}};
        sweep.run();
      };
      return pass.level == kSumOnly ? sweep_at(Constant<Level, kSumOnly>{})
             : pass.level == kMean  ? sweep_at(Constant<Level, kMean>{})
                                    : sweep_at(Constant<Level, kAllMoments>{});
    }
  }
  auto sweep_at = [&](auto level) {
    if constexpr (kD > 0) {
      sweep_tile<T, kD, level.value>(grid, first_block, last_block, tile.queries, count,
                                     tile.energy, tile.sums, tile.vectors);
    } else {
      sweep_tile_of_many<T, level.value>(grid, first_block, last_block,
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
static void sweep_any(const Pass<T>& pass, int layer, int64_t first_block, int64_t last_block,
                      int64_t count, Tile<T>& tile) {
  switch (pass.grid->D) {
    case 1:
      return sweep_level<T, 1>(pass, layer, first_block, last_block, count, tile);
    case 2:
      return sweep_level<T, 2>(pass, layer, first_block, last_block, count, tile);
    case 3:
      return sweep_level<T, 3>(pass, layer, first_block, last_block, count, tile);
    case 4:
      return sweep_level<T, 4>(pass, layer, first_block, last_block, count, tile);
    default:
      return sweep_level<T, 0>(pass, layer, first_block, last_block, count, tile);
  }
}

// How many pieces to cut the latents into, so that few queries still occupy every thread.
LEBM_INLINE int64_t latent_pieces(int64_t tiles, int64_t blocks, const Parallel& parallel) {
  const int64_t wanted = 4 * parallel.threads;
  if (parallel.threads == 1 || tiles >= wanted || tiles == 0) return 1;
  const int64_t pieces = (wanted + tiles - 1) / tiles, most = (blocks + 3) / 4;
  return pieces < most ? pieces : most;
}

// Sweeps the pass's queries. A tile whose latents are cut in pieces is merged in their order, so
// that the result depends on the number of threads but not on their timing.
template <typename T>
static void run(const Pass<T>& pass, const Parallel& parallel) {
  const Grid<T>& grid = *pass.grid;
  const int64_t size = tile_size(grid.D), tiles = (pass.count + size - 1) / size;
  const int64_t pieces = latent_pieces(tiles, grid.num_blocks, parallel);
  // A piece has whole blocks of the widest layer of which there are enough.
  int layer = pass.layers->count - 1;
  while (layer > 0 && pass.layers->grid[layer].num_blocks < 2 * pieces) --layer;
  auto piece_start = [&](int64_t piece) {
    const Grid<T>& wide = pass.layers->grid[layer];
    const int64_t start = wide.num_blocks * piece / pieces * (wide.block / grid.block);
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
  if (pieces == 1) {
    // Contiguous shares of the tiles, one scratch each.
    const int64_t shares = tiles < 8 * parallel.threads ? tiles : 8 * parallel.threads;
    for_each(parallel, shares, [&](int64_t share) {
      Scratch scratch(bytes);
      Tile<T> tile(scratch.get(), grid.D, grid.block);
      for (int64_t t = tiles * share / shares; t < tiles * (share + 1) / shares; ++t) {
        load_tile(pass, t * size, count_of(t), tile);
        sweep_any(pass, layer, 0, grid.num_blocks, count_of(t), tile);
        finish_tile(t, tile);
      }
    });
    return;
  }
  Scratch scratch(stride * size_t(tiles * pieces));
  auto tile_at = [&](int64_t t, int64_t piece) {
    char* memory = static_cast<char*>(scratch.get()) + stride * size_t(t * pieces + piece);
    return Tile<T>(memory, grid.D, grid.block);
  };
  for_each(parallel, tiles * pieces, [&](int64_t i) {
    const int64_t t = i / pieces, piece = i % pieces;
    Tile<T> tile = tile_at(t, piece);
    load_tile(pass, t * size, count_of(t), tile);
    sweep_any(pass, layer, piece_start(piece), piece_start(piece + 1), count_of(t), tile);
  });
  for (int64_t t = 0; t < tiles; ++t) {
    Tile<T> whole = tile_at(t, 0);
    for (int64_t piece = 1; piece < pieces; ++piece) {
      Tile<T> part = tile_at(t, piece);
      for (int64_t i = 0; i < count_of(t); ++i)
        merge(whole.queries[i], grid.weighted, whole.sums[i], whole.vectors[i], part.sums[i],
              part.vectors[i], grid.D);
    }
    finish_tile(t, whole);
  }
}

template <typename T>
static void rows_of_grid(const Problem<T>& p, const RowOutputs<T>& out, int64_t b, void* memory,
                         const Parallel& parallel) {
  auto* flags = static_cast<BlockFlags*>(memory);
  auto* query = reinterpret_cast<int64_t*>(flags + num_blocks(p));
  void* room = query + p.M;
  auto* mode = static_cast<unsigned char*>(room) + padded(grid_bytes(p, streams(p)));
  void* order = mode + padded(size_t(p.M));
  const Packed<T> packed(p, b, room, flags, sorts(p) ? order : nullptr, parallel);
  const Grid<T>& grid = packed.grid;
  const bool moments = out.slope_y || out.mean;
  const Level level = out.slope_scale || out.slope_beta ? kAllMoments : moments ? kMean : kSumOnly;
  const double unseen = p.tol < 0 ? kUnseen<T> : __builtin_log2(p.tol);
  const bool sorted = sorts_queries(p, b, grid, unseen);
  const Scratch order_memory(sorted ? order_bytes(p.M) : 0);
  const int64_t* by_place =
      sorted ? sort_by_place(p.y, b, p.M, p.D, kTile, order_memory.get(), parallel) : nullptr;
  // Not for the least energy's own index, nor for <E> of latent energies that differ.
  const bool in_series = !out.index && !(level == kAllMoments && grid.r_low != grid.r_high);
  const BuiltLayers<T> built(p, b, grid, in_series, parallel);
  Pass<T> pass{&p, &out, &grid, b, mode, by_place, p.M, &built.layers, level, unseen, true};
  run(pass, parallel);
  pass.first = false;
  pass.level = kSumOnly;
  pass.query = query;
  for (;;) {
    bool slopes = false;
    pass.count = 0;
    for (int64_t m = 0; m < p.M; ++m) {
      if (mode[m] != kSkip) query[pass.count++] = m;
      slopes |= mode[m] == kSlope;
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
