// The column pass over a whole problem: packs each grid, sorts the queries, and divides the blocks
// of latents among the threads.
//
//     columns: G [B, M], state [B, M, 4], y, decoded, ... -> grad_decoded [B, N, D],
//     grad_log_weight and grad_latent_energy [B, N]
#pragma once

#include "../grid/pack.h"
#include "../series/columns.h"
#include "centred.h"
#include "queries.h"
#include "treat.h"
#include "write.h"

LEBM_BEGIN_TARGET

struct NoChunk {};

template <typename T, int kD>
struct ChunkOf {
  using type = CentredChunk<T, kD>;
};

template <typename T>
struct ChunkOf<T, 0> {
  using type = NoChunk;
};

template <typename T, int kD>
using Chunk = typename ChunkOf<T, kD>::type;

template <typename T, int kD>
static void queries_against_block(const ColumnTask<T>& task, const Block<T>& block,
                                  int64_t first_query, int64_t last_query, T* scratch,
                                  const ColumnSums<T>& sums) {
  Chunk<T, kD> centred;
  for (int regime = 0; regime < kRegimes; ++regime) {
    const int64_t start = task.ends[regime] > first_query ? task.ends[regime] : first_query;
    const int64_t stop = task.ends[regime + 1] < last_query ? task.ends[regime + 1] : last_query;
    for (int64_t q = start; q < stop; q += kChunk) {
      const int64_t end = q + kChunk < stop ? q + kChunk : stop;
      switch (regime) {
        case kWarm:
          if constexpr (kD > 0) {
            if (!task.grid->weighted) {
              finite_queries_centred(task, block, q, end, centred, scratch, sums);
              break;
            }
          }
          treat<T, kD, kWarm>(task, block, q, end, scratch, sums);
          break;
        case kSmall:
          treat<T, kD, kSmall>(task, block, q, end, scratch, sums);
          break;
        case kHot:
          treat<T, kD, kHot>(task, block, q, end, scratch, sums);
          break;
        default:
          treat<T, kD, kCold>(task, block, q, end, scratch, sums);
          break;
      }
    }
  }
}

template <typename T>
static void queries_against_any(const ColumnTask<T>& task, const Block<T>& block,
                                int64_t first_query, int64_t last_query, T* scratch,
                                const ColumnSums<T>& sums) {
  switch (task.grid->D) {
    case 1:
      return queries_against_block<T, 1>(task, block, first_query, last_query, scratch, sums);
    case 2:
      return queries_against_block<T, 2>(task, block, first_query, last_query, scratch, sums);
    case 3:
      return queries_against_block<T, 3>(task, block, first_query, last_query, scratch, sums);
    case 4:
      return queries_against_block<T, 4>(task, block, first_query, last_query, scratch, sums);
    default:
      return queries_against_block<T, 0>(task, block, first_query, last_query, scratch, sums);
  }
}

// Scratch memory of one block of latents.
template <typename T>
struct BlockScratch {
  ColumnSums<T> sums;
  T* energy;
  T* unpacked;  // a streamed block

  static size_t bytes(const Grid<T>& grid) {
    const int64_t D = grid.D, block = grid.block, own = block * (D + 2);
    return padded(sizeof(double) * doubles(D, block)) +
           padded(sizeof(T) * size_t(own + energies(D, block)) + grid.scratch_bytes());
  }
  // The sums over all chunks are contiguous.
  static size_t doubles(int64_t D, int64_t block) { return size_t(block * (D + 3)); }
  static int64_t energies(int64_t D, int64_t block) {
    return D <= kNarrow ? 0 : WideColumnScratch<T>::count(D, block);
  }
  BlockScratch(void* memory, const Grid<T>& grid) {
    const int64_t D = grid.D, block = grid.block;
    sums.g_all = static_cast<double*>(memory);
    sums.r_all = sums.g_all + D * block;
    sums.l_all = sums.r_all + block;
    sums.l_small = sums.l_all + block;
    sums.g = reinterpret_cast<T*>(static_cast<char*>(memory) +
                                  padded(sizeof(double) * doubles(D, block)));
    sums.r = sums.g + D * block;
    sums.l = sums.r + block;
    energy = sums.l + block;
    unpacked = energy + energies(D, block);
  }
  void clear(int64_t D, int64_t block) { fill(sums.g_all, int64_t(doubles(D, block)), 0.0); }
};

// The number of splits of the queries, where latents are few; splits are added in their order.
LEBM_INLINE int64_t num_query_splits(int64_t blocks, int64_t used, const Parallel& parallel) {
  const int64_t wanted = 4 * parallel.threads, most = (used + kChunk - 1) / kChunk;
  if (parallel.threads == 1 || blocks >= wanted || most == 0) return 1;
  const int64_t num_splits = (wanted + blocks - 1) / blocks;
  return num_splits < most ? num_splits : most;
}

// Fails where bounded_block does.
template <typename T>
static bool columns_of_packed(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                              const Grid<T>& grid, ColumnMemory<T>& memory,
                              const Parallel& parallel) {
  int64_t ends[kRegimes + 1];
  ColumnTask<T> task{&grid,
                     memory.queries,
                     memory.y,
                     memory.s,
                     ends,
                     arguments.grad_log_weight != nullptr,
                     p.scale.data != nullptr,
                     p.tol < 0 ? kLog2Rounding<T> : __builtin_log2(p.tol)};
  bool poisoned = grid.has_nan;
  const double unit = unit_of_gradients(arguments.grad + b * p.M, p.M);
  const double pulled = sort_queries(p, arguments, b, grid, memory, task, ends, unit, poisoned);
  const int64_t used = ends[kRegimes], blocks = grid.num_blocks;
  const int64_t num_splits = num_query_splits(blocks, used, parallel);
  const ColumnSeries<T> series(p, b, task, poisoned ? 0 : used, parallel);
  const int64_t leaves = series.serves ? series.leaves() : 1,
                roots = (blocks + leaves - 1) / leaves;
  const size_t bytes = BlockScratch<T>::bytes(grid);
  auto scratch_of = [&](const BlockScratch<T>& own) {
    Grid<T> mine = grid;
    mine.scratch = own.unpacked;
    return mine;
  };
  auto sum_split = [&](const Block<T>& block, int64_t split, BlockScratch<T>& own) {
    own.clear(p.D, grid.block);
    if (poisoned) return;
    if (series.serves) {
      const int64_t first = used * split / num_splits, last = used * (split + 1) / num_splits;
      const Scratch lists(series.list_bytes(last - first));
      return pass_by_series(series, task, block.first / grid.block, first, last, &own.sums,
                            own.energy, lists.get());
    }
    queries_against_any(task, block, used * split / num_splits, used * (split + 1) / num_splits,
                        own.energy, own.sums);
  };
  if (series.serves && num_splits == 1) {
    for_each(parallel, roots, [&](int64_t root) {
      const int64_t first = root * leaves, end = first + leaves < blocks ? first + leaves : blocks;
      const Scratch mine(bytes * size_t(leaves)), lists(series.list_bytes(used));
      auto own_of = [&](int64_t leaf) {
        return BlockScratch<T>(static_cast<char*>(mine.get()) + bytes * size_t(leaf), grid);
      };
      ColumnSums<T> sums[kRootLeaves];
      for (int64_t leaf = 0; leaf < leaves; ++leaf) {
        own_of(leaf).clear(p.D, grid.block);
        sums[leaf] = own_of(leaf).sums;
      }
      pass_by_series(series, task, root, 0, used, sums, own_of(0).energy, lists.get());
      for (int64_t i = first; i < end; ++i)
        write_block(p, arguments, b, grid, grid.at(i), sums[i - first], pulled, unit, poisoned);
    });
    return true;
  }
  if (num_splits == 1) {
    const int64_t num_ranges = blocks < 8 * parallel.threads ? blocks : 8 * parallel.threads;
    const Scratch flags(size_t(num_ranges) * sizeof(bool));
    bool* failed = static_cast<bool*>(flags.get());
    for_each(parallel, num_ranges, [&](int64_t range) {
      failed[range] = false;
      Scratch mine(bytes);
      BlockScratch<T> own(mine.get(), grid);
      for (int64_t i = blocks * range / num_ranges; i < blocks * (range + 1) / num_ranges; ++i) {
        Block<T> block;
        if (!bounded_block(scratch_of(own), i, block)) {
          failed[range] = true;
          return;
        }
        sum_split(block, 0, own);
        write_block(p, arguments, b, grid, block, own.sums, pulled, unit, poisoned);
      }
    });
    for (int64_t range = 0; range < num_ranges; ++range)
      if (failed[range]) return false;
    return true;
  }
  Scratch all(bytes * size_t(blocks * num_splits));
  auto scratch_at = [&](int64_t i, int64_t split) {
    char* start = static_cast<char*>(all.get()) + bytes * size_t(i * num_splits + split);
    return BlockScratch<T>(start, grid);
  };
  for_each(parallel, blocks * num_splits, [&](int64_t i) {
    BlockScratch<T> own = scratch_at(i / num_splits, i % num_splits);
    sum_split(scratch_of(own).at(i / num_splits), i % num_splits, own);
  });
  for (int64_t i = 0; i < blocks; ++i) {
    BlockScratch<T> merged = scratch_at(i, 0);
    for (int64_t split = 1; split < num_splits; ++split) {
      BlockScratch<T> other = scratch_at(i, split);
      const auto count = int64_t(BlockScratch<T>::doubles(p.D, grid.block));
      for (int64_t k = 0; k < count; ++k) merged.sums.g_all[k] += other.sums.g_all[k];
    }
    write_block(p, arguments, b, grid, scratch_of(merged).at(i), merged.sums, pulled, unit,
                poisoned);
  }
  return true;
}

template <typename T>
static void columns_of_grid(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                            void* scratch, const Parallel& parallel) {
  ColumnMemory<T> memory(scratch, p);
  if (streams(p)) {
    // Each block is met once, so its bounds are found then.
    const Grid<T> grid =
        pack(p, b, memory.packed, memory.flags, nullptr, parallel, true, /*bounded=*/false);
    if (columns_of_packed(p, arguments, b, grid, memory, parallel)) return;
  }
  const Packed<T> packed(p, b, memory.packed, memory.flags,
                         sorts(p) ? memory.order_of_latents : nullptr, parallel);
  columns_of_packed(p, arguments, b, packed.grid, memory, parallel);
}

template <typename T>
static void columns(const Problem<T>& p, const ColumnArguments<T>& arguments,
                    const Parallel& parallel) {
  each_grid(p.B, ColumnMemory<T>::bytes(p), parallel,
            [&](int64_t b, void* memory, const Parallel& inner) {
              columns_of_grid(p, arguments, b, memory, inner);
            });
}

LEBM_END_TARGET
