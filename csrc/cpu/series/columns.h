// The column pass by series: the roles of queries and latents in layers.h exchanged.
//
// With u = y - s c and v = g - c about the centre c of a block of latents, a pair contributes
//
//     G p = w h exp(a . x),   a = 2 beta s u width,   x = v / width,
//
// where w = G 2^start depends on the query and h = exp(-beta (s^2 . v^2 + r - least r)) on the
// latent. So the sum over the queries is a polynomial in x, whose coefficients are sums of w a^k:
//
//     sum G p             = h P(x)
//     sum G p s (y - s g) = h (P'(x) / (2 beta width) - s^2 v P(x))
//
// A query costs a product a monomial, however many latents the block has; a latent costs the same,
// however many queries there are. Blocks are tried from the widest down; a query goes down where a
// block's series is not exact enough for it.
//
// Every term is exact to a rounding of itself, the first rule of order_for: a latent's sum may be
// small beside those of its block, and terms may cancel. And y - s g must vanish where y = s g, but
// u and s v, both of the block's size near it, leave an error of that size. Floats need more
// monomials there; in double, near queries are taken pair by pair.
#pragma once

#include "../columns/centred.h"
#include "column_block.h"

LEBM_BEGIN_TARGET

// Queries that pay for a block's coefficients and their evaluation.
constexpr int64_t kFewestInSeries = 48;

// The highest orders that pay, for a packed block and for blocks of blocks.
constexpr int kColumnOrders[kLayers] = {27, 24, 24};

// Packed blocks in one block of the last layer.
constexpr int64_t kRootLeaves = kFan * kFan;
static_assert(kLayers == 3);

// Sums over this many points, 16 a lane, are added up: queries may be alike, and then their
// roundings are too, and don't cancel.
constexpr int64_t kSeriesRun = 16 * kLanes<double>;
static_assert(kSeriesRun % kSeriesPoints == 0);

// Queries whose powers are summed up to the same order.
template <typename T>
struct SeriesBucket {
  T factor[kSeriesPoints];
  uint32_t query[kSeriesPoints];
  int64_t count;
};

// All queries against a block of the root layer and the blocks below it.
template <typename T, int kD>
struct SeriesPass {
  const ColumnTask<T>& task;  // of the packed grid
  const ColumnLayers<T>& layers;
  const ColumnQueries<T>& all;
  const SeriesOf<T>& of;
  MeasuredQueries<T, kD> measured;
  int64_t first_leaf;         // the leaf of sums[0]
  const ColumnSums<T>* sums;  // of the packed blocks
  T* energy;                  // scratch memory of a packed block
  uint32_t* lists[kLayers];   // queries for the layer below
  SeriesBucket<T> buckets[kOrderSteps + 1];
  PowerSums<kD> powers, totals;
  int64_t run;  // points in `powers` that are not yet in `totals`
  int steps;    // the highest order summed; 0: nothing yet
  CentredChunk<T, kD> chunk;
  ColumnQuery<T> few[kChunk];
  T few_y[kChunk * kD], few_s[kChunk * kD];

  SeriesPass(const ColumnSeries<T>& series, const ColumnTask<T>& task, int64_t first_leaf,
             const ColumnSums<T>* sums, T* energy, uint32_t* memory, int64_t count)
      : task(task),
        layers(series.layers),
        all(series.queries),
        of(series.of),
        measured(series.of),
        first_leaf(first_leaf),
        sums(sums),
        energy(energy) {
    for (int k = 0; k <= series.root; ++k) lists[k] = memory + k * count;
  }

  // The queries `list`, or from `first` on, against block i of layer k.
  void visit(int k, int64_t i, const uint32_t* list, int64_t first, int64_t count) {
    const Grid<T>& grid = layers.grid[k];
    if (!(grid.r_floor[i] <= grid.r_top[i])) return;
    const ColumnBlock<T, kD> block(grid, i, of);
    const T threshold = T(task.log2_tol - __builtin_log2(double(grid.N)));
    int64_t left = 0, waiting = 0;
    steps = 0;
    for (SeriesBucket<T>& bucket : buckets) bucket.count = 0;
    // Tiles of all queries begin at multiples of their size; a list has no tiles.
    const int64_t offset = list ? 0 : first % kColumnTile;
    for (int64_t begin = 0, some; begin < count; begin += some) {
      const int64_t most = kColumnTile - (begin == 0 ? offset : 0);
      some = count - begin < most ? count - begin : most;
      if (!list && prunes(block, (first + begin) / kColumnTile, threshold)) continue;
      measured.take(all, list, first + begin, some);
      measured.measure(grid, i, block, some);
      for (int64_t j = 0; j < some; ++j) {
        const uint32_t q = list ? list[first + begin + j] : uint32_t(first + begin + j);
        const T square = measured.square[j];
        // As in plan_chunk: it would not show in a latent's gradient.
        if (measured.highest[j] < threshold) continue;
        const int step = step_of(block, square, measured.reach[j]);
        if (step * kOrderStep > kColumnOrders[k]) {
          lists[k][left++] = q;
          continue;
        }
        SeriesBucket<T>& bucket = buckets[step];
        const int64_t at = bucket.count++;
        bucket.query[at] = q;
        bucket.factor[at] = measured.factor[j];
        ++waiting;
        if (bucket.count == kSeriesPoints) {
          waiting -= kSeriesPoints;
          add_bucket(block, step);
        }
      }
    }
    const bool repays = steps > 0 || waiting >= kFewestInSeries;
    for (int step = 1; step <= kOrderSteps; ++step) {
      SeriesBucket<T>& bucket = buckets[step];
      for (int64_t j = 0; !repays && j < bucket.count; ++j) lists[k][left++] = bucket.query[j];
      if (repays && bucket.count) add_bucket(block, step);
    }
    if (steps > 0) add_series(k, i, block);
    if (left == 0) return;
    if (k == 0) return sum_pairs(i, left);
    const int64_t below = layers.grid[k - 1].num_blocks;
    const int64_t end = (i + 1) * kFan < below ? (i + 1) * kFan : below;
    for (int64_t child = i * kFan; child < end; ++child) visit(k - 1, child, lists[k], 0, left);
  }

  // Whether the block matters to no query of a tile.
  bool prunes(const ColumnBlock<T, kD>& block, int64_t tile, T threshold) const {
    double square = 0;
    for (int d = 0; d < kD; ++d) {
      const double low = all.low[d][tile], high = all.high[d][tile];
      const double at = double(block.s[d]) * block.centre[d], side = block.side[d];
      const double under = low - (at + side), over = (at - side) - high;
      const double gap = under > over ? under : over;
      if (gap > 0) square += gap * gap;
    }
    // Less the rounding of such energies, and of those they are compared with.
    const double r = block.r_floor;
    const double rounding = 16 * Exponent<T>::epsilon * (square + (r < 0 ? -r : r));
    return all.top[tile] - block.rate * (square + r - rounding) < threshold;
  }

  int step_of(const ColumnBlock<T, kD>& block, T square, T reach) const {
    if (!(square < block.most_square) || !(reach < T(OrderTable::kReaches) / 4)) return kNoOrder;
    if (square > block.near_square) return kFarSteps<T>.at[int(reach * 4)];
    return block.serves_near ? kNearSteps<T>.at[int(reach * 4)] : kNoOrder;
  }

  void add_bucket(const ColumnBlock<T, kD>& block, int step) {
    alignas(64) double w[kSeriesPoints], a[kD][kSeriesPoints];
    SeriesBucket<T>& bucket = buckets[step];
    for (int64_t j = 0; j < bucket.count; ++j) {
      const int64_t q = bucket.query[j];
      w[j] = double(all.grad[q]) * double(bucket.factor[j]);
      for (int d = 0; d < kD; ++d) {
        const double u = double(all.y[d][q]) - double(block.s[d]) * double(block.centre[d]);
        a[d][j] = block.per_a[d] * u;
      }
    }
    for (int64_t j = bucket.count; j < kSeriesPoints; ++j) {
      w[j] = 0;
      for (int d = 0; d < kD; ++d) a[d][j] = 0;
    }
    bucket.count = 0;
    if (steps == 0) {
      powers.clear();
      totals.clear();
      run = 0;
    }
    steps = step > steps ? step : steps;
    const double* at[kD];
    for (int d = 0; d < kD; ++d) at[d] = a[d];
    add_powers<kD>(step * kOrderStep, kSeriesPoints, w, at, powers);
    run += kSeriesPoints;
    if (run == kSeriesRun) end_run();
  }

  void end_run() {
    const int64_t order = steps * kOrderStep;
    for (int64_t x = 0; x < order; ++x) {
      for (int64_t y = 0; y < (kD == 1 ? 1 : order - x); ++y) {
        const int64_t at = kD == 1 ? x : x * kSeriesStride + y;
        totals.at[at] = add(totals.at[at], powers.at[at]);
        powers.at[at] = broadcast(0.0);
      }
    }
    run = 0;
  }

  // Adds the series of block i of layer k to its latents' sums.
  void add_series(int k, int64_t i, const ColumnBlock<T, kD>& block) {
    constexpr int kV = 4;
    constexpr int64_t kSome = kV * kLanes<double>;
    end_run();
    const int64_t order = steps * kOrderStep;
    double coefficients[kPowerSums<kD>];
    coefficients_of<kD>(order, totals, coefficients);
    const Grid<T>&packed = layers.grid[0], &grid = layers.grid[k];
    const int64_t leaves = grid.block / packed.block;
    const int64_t end = (i + 1) * leaves < packed.num_blocks ? (i + 1) * leaves : packed.num_blocks;
    for (int64_t leaf = i * leaves; leaf < end; ++leaf) {
      const SeriesPoints<T, kD> points(packed.at(leaf), packed.whole[leaf], of, block.centre,
                                       block.width, block.r_floor);
      const ColumnSums<T>& into = sums[leaf - first_leaf];
      for (int64_t j = 0; j < kLeaf; j += kSome) {
        VecD x[kV][kD];
        SeriesValues<kD, 1, kV> of_queries;
        for (int v = 0; v < kV; ++v)
          for (int d = 0; d < kD; ++d) x[v][d] = load(points.x[d] + j + v * kLanes<double>);
        evaluate<kD, 1, kV>(order, order, coefficients, x, of_queries);
        for (int v = 0; v < kV; ++v) {
          const int64_t n = j + v * kLanes<double>;
          const VecD h = load(points.h + n), value = mul(h, of_queries.value[v]);
          store(into.r_all + n, add(load(into.r_all + n), value));
          for (int d = 0; d < kD; ++d) {
            const double s = block.s[d], shift = s * s * block.width[d];
            const VecD slope = mul(mul(h, of_queries.first[v][d]), broadcast(1 / block.slope[d]));
            const VecD pull = fnma(mul(x[v][d], broadcast(shift)), value, slope);
            store(into.g_all + d * kLeaf + n, add(load(into.g_all + d * kLeaf + n), pull));
          }
        }
      }
    }
  }

  // Pair by pair, the queries for which no layer has a usable series.
  void sum_pairs(int64_t i, int64_t count) {
    const Block<T> block = layers.grid[0].at(i);
    ColumnTask<T> pairs = task;
    pairs.queries = few;
    pairs.y = few_y;
    pairs.s = few_s;
    for (int64_t begin = 0; begin < count; begin += kChunk) {
      const int64_t some = count - begin < kChunk ? count - begin : kChunk;
      for (int64_t j = 0; j < some; ++j) {
        const int64_t q = all.place[lists[0][begin + j]];
        few[j] = task.queries[q];
        for (int d = 0; d < kD; ++d) {
          few_y[j * kD + d] = task.y[q * kD + d];
          few_s[j * kD + d] = task.s[q * kD + d];
        }
      }
      finite_queries_centred(pairs, block, 0, some, chunk, energy, sums[i - first_leaf]);
    }
  }
};

// Queries [first, last) against block i of the root layer; `sums` are of its packed blocks, `lists`
// is scratch memory.
template <typename T>
static void pass_by_series(const ColumnSeries<T>& series, const ColumnTask<T>& task, int64_t i,
                           int64_t first, int64_t last, const ColumnSums<T>* sums, T* energy,
                           void* lists) {
  auto sum_exponentials = [&](auto d) {
    SeriesPass<T, d.value> of_block(series, task, i * series.leaves(), sums, energy,
                                    static_cast<uint32_t*>(lists), last - first);
    of_block.visit(series.root, i, nullptr, first, last - first);
  };
  task.grid->D == 1 ? sum_exponentials(Constant<int, 1>{}) : sum_exponentials(Constant<int, 2>{});
}

LEBM_END_TARGET
