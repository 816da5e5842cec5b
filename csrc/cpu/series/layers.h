// A grid's blocks, and blocks of blocks, each with a series where it can be used.
//
// A layer is a Grid as far as bounds go: centre, half sides, range of latent energies, weight.
// Layer 0 is the packed grid; a block of the next layer holds kFan blocks of the one below. With u
// = y - s c and v = g - c about a block's centre c, beta (2 s u . v) = a . x for x = v / width and
// a = 2 beta s u width. So a block's sum is
//
//     2^start sum_n h_n exp(a . x_n),   x [leaf][D], h [leaf];   see rows/plan.h and powers.h.
#pragma once

#include "../../problem.h"
#include "../grid/block.h"
#include "../regime.h"
#include "powers.h"

LEBM_BEGIN_TARGET

constexpr int kLayers = 3;
constexpr int64_t kFan = 4;
// Terms cost memory: small blocks, whose series are rarely usable, keep fewer.
constexpr int kLeafOrder = 26;

template <typename T>
struct Layers {
  int count;
  Grid<T> grid[kLayers];
  BlockSeries<T> series[kLayers];  // without coefficients where there are none
};

// Widths are half a block's sides. Where these vanish, a width that is negligible to any query the
// block matters to, |u| below some 10 / sqrt(beta).
template <typename T>
LEBM_INLINE double series_width(T half, T scale, double beta) {
  const double size = scale < 0 ? -double(scale) : double(scale);
  const double least = 1e-3 / (__builtin_sqrt(beta) * (size > 1e-3 ? size : 1e-3));
  return half > least ? double(half) : least;
}

// What all layers' series have in common.
template <typename T>
struct SeriesOf {
  double beta;
  T rate;
  T s[2];
};

// x and h of a packed block's latents about a centre; 0 for those that don't count.
template <typename T, int kD>
struct SeriesPoints {
  alignas(64) double h[kLeaf], x[kD][kLeaf];

  SeriesPoints(const Block<T>& block, bool whole, const SeriesOf<T>& of, const T* centre,
               const double* width, double r_floor) {
    for (int64_t j = 0; j < kLeaf; ++j) h[j] = double(block.r[j]) - r_floor;
    for (int d = 0; d < kD; ++d) {
      const double inverse = 1 / width[d], square_s = double(of.s[d]) * double(of.s[d]);
      for (int64_t j = 0; j < kLeaf; ++j) {
        const double v = double(block.g[d * kLeaf + j]) - double(centre[d]);
        h[j] += square_s * v * v;
        x[d][j] = v * inverse;
      }
    }
    for (int64_t j = 0; j < kLeaf; j += kLanes<double>)
      store(h + j, exp2_of<double>(mul(load(h + j), broadcast(-double(of.rate)))));
    for (int64_t j = 0; !whole && j < kLeaf; ++j) {
      if (block.r[j] != kAbsent<T>) continue;
      h[j] = 0;
      for (int d = 0; d < kD; ++d) x[d][j] = 0;
    }
  }
};

// A query within a block has |2 beta s u . v| up to some 2 beta s^2 . half^2. Beyond this, hardly
// any query is near enough to the centre for a series.
constexpr double kMostReach = 8;

// Fills the coefficients and widths of block i of a layer whose blocks hold `leaves` packed ones. A
// width of inf marks a block without a series.
template <typename T, int kD>
static void expand_block(const Grid<T>& packed, const Grid<T>& layer, int64_t leaves, int64_t i,
                         const SeriesOf<T>& of, int order, double* coefficients, double* width) {
  double reach = 0;
  for (int d = 0; d < kD; ++d) {
    const double half = double(of.s[d]) * layer.half[i * kD + d];
    reach += 2 * of.beta * half * half;
    width[d] = series_width(layer.half[i * kD + d], of.s[d], of.beta);
  }
  if (!(reach < kMostReach)) {
    for (int d = 0; d < kD; ++d) width[d] = __builtin_inf();
    return;
  }
  PowerSums<kD> sums;
  sums.clear();
  const int64_t end = (i + 1) * leaves < packed.num_blocks ? (i + 1) * leaves : packed.num_blocks;
  for (int64_t leaf = i * leaves; leaf < end; ++leaf) {
    const SeriesPoints<T, kD> points(packed.at(leaf), packed.whole[leaf], of, layer.centre + i * kD,
                                     width, layer.r_floor[i]);
    const double* x[kD];
    for (int d = 0; d < kD; ++d) x[d] = points.x[d];
    add_powers<kD>(order, kLeaf, points.h, x, sums);
  }
  coefficients_of<kD>(order, sums, coefficients);
}

// Bounds, weight and centre of block i of a layer.
template <typename T>
static void bound_block(const Grid<T>& below, Grid<T>& layer, int64_t i) {
  const int64_t D = layer.D;
  const int64_t end = (i + 1) * kFan < below.num_blocks ? (i + 1) * kFan : below.num_blocks;
  T floor = kAbsent<T>, top = -kAbsent<T>;
  layer.block_weight[i] = 0;
  for (int64_t d = 0; d < D; ++d) {
    layer.low[i * D + d] = kAbsent<T>;
    layer.high[i * D + d] = -kAbsent<T>;
  }
  for (int64_t k = i * kFan; k < end; ++k) {
    layer.block_weight[i] += below.block_weight[k];
    if (!(below.r_floor[k] <= below.r_top[k])) continue;
    floor = below.r_floor[k] < floor ? below.r_floor[k] : floor;
    top = below.r_top[k] > top ? below.r_top[k] : top;
    for (int64_t d = 0; d < D; ++d) {
      const T low = below.low[k * D + d], high = below.high[k * D + d];
      layer.low[i * D + d] = low < layer.low[i * D + d] ? low : layer.low[i * D + d];
      layer.high[i * D + d] = high > layer.high[i * D + d] ? high : layer.high[i * D + d];
    }
  }
  // As for an empty packed block.
  layer.r_floor[i] = floor <= top ? floor : T(1);
  layer.r_top[i] = floor <= top ? top : T(0);
  for (int64_t d = 0; d < D; ++d) {
    const T low = layer.low[i * D + d], high = layer.high[i * D + d];
    layer.centre[i * D + d] = low <= high ? middle_of(low, high) : T(0);
    layer.half[i * D + d] = low <= high ? half_of(layer.centre[i * D + d], low, high) : T(0);
  }
}

// Sets what the series of grid b depend on; false where it has none.
template <typename T>
static bool has_series(const Problem<T>& p, int64_t b, const Grid<T>& grid, SeriesOf<T>& of) {
  of = {*p.beta.at(b), T(0), {T(1), T(1)}};
  of.rate = T(of.beta * kLog2E);
  if (!grid.leaves || grid.has_nan || !(of.beta > 0) || is_cold<T>(of.beta)) return false;
  for (int64_t d = 0; p.scale.data && d < p.D; ++d) {
    of.s[d] = p.scale.at(b)[d * p.scale.stride[2]];
    if (!is_finite(of.s[d])) return false;
  }
  return true;
}

// Takes pieces of memory one after the other; from null it only counts.
struct Carver {
  char* memory;
  size_t used = 0;

  template <typename U>
  U* take(int64_t count) {
    U* taken = memory ? reinterpret_cast<U*>(memory + used) : nullptr;
    used += padded(sizeof(U) * size_t(count));
    return taken;
  }
};

// The layers over a packed grid, in `memory`; the packed grid alone where it has no leaves.
// `expands`: whether there are series.
template <typename T>
static Layers<T> lay_out_layers(const Problem<T>& p, const Grid<T>& packed, bool expands,
                                Carver& carver) {
  Layers<T> layers{};
  layers.count = 1;
  layers.grid[0] = packed;
  if (!packed.leaves) return layers;
  for (int k = 0; k < kLayers; ++k) {
    Grid<T>& grid = layers.grid[k];
    if (k > 0) {
      const Grid<T>& below = layers.grid[k - 1];
      if (below.num_blocks == 1) break;
      layers.count = k + 1;
      grid.N = p.N;
      grid.D = p.D;
      grid.block = below.block * kFan;
      grid.num_blocks = (below.num_blocks + kFan - 1) / kFan;
      grid.block_weight = carver.take<double>(grid.num_blocks);
      T** const vectors[] = {&grid.centre, &grid.low, &grid.high, &grid.half};
      for (T** vector : vectors) *vector = carver.take<T>(grid.num_blocks * p.D);
      grid.r_floor = carver.take<T>(grid.num_blocks);
      grid.r_top = carver.take<T>(grid.num_blocks);
    }
    if (!expands) continue;
    BlockSeries<T>& series = layers.series[k];
    series.order = k == 0 ? kLeafOrder : kMostOrder + 2;
    series.terms = series_terms(p.D, series.order);
    series.coefficients = carver.take<double>(grid.num_blocks * series.terms);
    series.width = carver.take<double>(grid.num_blocks * p.D);
  }
  return layers;
}

// The layers of grid b, in memory of their own. `in_series`: whether the pass can use series.
template <typename T>
class BuiltLayers {
 public:
  Layers<T> layers;

  BuiltLayers(const Problem<T>& p, int64_t b, const Grid<T>& packed, bool in_series,
              const Parallel& parallel)
      : expands_(in_series && has_series(p, b, packed, of_)), memory_(bytes(p, packed)) {
    Carver carver{static_cast<char*>(memory_.get())};
    layers = lay_out_layers(p, packed, expands_, carver);
    int64_t leaves = 1;
    for (int k = 0; k < layers.count; ++k, leaves *= kFan) {
      if (k == 0 && !expands_) continue;
      for_each(parallel, layers.grid[k].num_blocks, [&](int64_t i) {
        if (k > 0) bound_block(layers.grid[k - 1], layers.grid[k], i);
        if (!expands_) return;
        p.D == 1 ? expand<1>(packed, k, leaves, i) : expand<2>(packed, k, leaves, i);
      });
    }
  }

 private:
  size_t bytes(const Problem<T>& p, const Grid<T>& packed) const {
    Carver carver{nullptr};
    lay_out_layers(p, packed, expands_, carver);
    return carver.used;
  }

  template <int kD>
  void expand(const Grid<T>& packed, int k, int64_t leaves, int64_t i) {
    const BlockSeries<T>& series = layers.series[k];
    expand_block<T, kD>(packed, layers.grid[k], leaves, i, of_, series.order,
                        series.coefficients + i * series.terms, series.width + i * kD);
  }

  SeriesOf<T> of_;
  bool expands_;
  Scratch memory_;
};

LEBM_END_TARGET
