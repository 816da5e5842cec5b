// The layers and the queries of the column pass by series (see columns.h).
#pragma once

#include "../columns/task.h"
#include "../grid/sort.h"
#include "layers.h"

LEBM_BEGIN_TARGET

// Classifying a query that ends up with no usable block is wasted work, so series need blocks that
// are mostly narrow enough, beta rho^2 below this for a half diagonal rho, and enough latents.
constexpr double kMostWidth = 1.0 / 3;
constexpr int64_t kFewestLatents = 4 * kLeaf;

// Whether series pay in half of the blocks.
template <typename T>
static bool suits_series(const Grid<T>& grid, const SeriesOf<T>& of) {
  int64_t narrow = 0;
  for (int64_t i = 0; i < grid.num_blocks; ++i) {
    double square = 0;
    for (int64_t d = 0; d < grid.D; ++d) {
      const double half = double(of.s[d]) * grid.half[i * grid.D + d];
      square += half * half;
    }
    narrow += of.beta * square < kMostWidth;
  }
  return grid.N >= kFewestLatents && 2 * narrow >= grid.num_blocks;
}

// Blocks of the column pass: bounds only, see layers.h.
template <typename T>
struct ColumnLayers {
  int count;
  Grid<T> grid[kLayers];
};

template <typename T>
static ColumnLayers<T> lay_out_column_layers(const Grid<T>& packed, Carver& carver) {
  ColumnLayers<T> layers{};
  layers.grid[0] = packed;
  layers.count = 1;
  for (; layers.count < kLayers && layers.grid[layers.count - 1].num_blocks > 1; ++layers.count) {
    const Grid<T>& below = layers.grid[layers.count - 1];
    Grid<T>& grid = layers.grid[layers.count];
    grid.N = packed.N;
    grid.D = packed.D;
    grid.block = below.block * kFan;
    grid.num_blocks = (below.num_blocks + kFan - 1) / kFan;
    grid.block_weight = carver.take<double>(grid.num_blocks);
    T** const vectors[] = {&grid.centre, &grid.low, &grid.high, &grid.half};
    for (T** vector : vectors) *vector = carver.take<T>(grid.num_blocks * grid.D);
    grid.r_floor = carver.take<T>(grid.num_blocks);
    grid.r_top = carver.take<T>(grid.num_blocks);
  }
  return layers;
}

// Queries that lie together, and are pruned together.
constexpr int64_t kColumnTile = 64;

// The queries that have a gradient, side by side, in an order in which neighbours lie together.
template <typename T>
struct ColumnQueries {
  T *y[2], *shift, *log2_mass, *grad;
  const int64_t* place;  // its place in the task
  int64_t count;
  // Of each tile: its box, and the largest of rate m - log2_mass.
  T *low[2], *high[2];
  double* top;
};

template <typename T>
static ColumnQueries<T> lay_out_queries(int64_t D, int64_t count, Carver& carver) {
  ColumnQueries<T> queries{};
  queries.count = count;
  // A vector may reach beyond the last query.
  const int64_t size = count + kLanes<T>;
  for (int64_t d = 0; d < D; ++d) queries.y[d] = carver.take<T>(size);
  queries.shift = carver.take<T>(size);
  queries.log2_mass = carver.take<T>(size);
  queries.grad = carver.take<T>(size);
  const int64_t tiles = (count + kColumnTile - 1) / kColumnTile;
  for (int64_t d = 0; d < D; ++d) {
    queries.low[d] = carver.take<T>(tiles);
    queries.high[d] = carver.take<T>(tiles);
  }
  queries.top = carver.take<double>(tiles);
  return queries;
}

// What the series of a grid's column pass need; `serves` is false if it uses none.
template <typename T>
struct ColumnSeries {
  SeriesOf<T> of;
  bool serves;
  int root;  // the layer that a pass begins with
  ColumnLayers<T> layers;
  ColumnQueries<T> queries;
  Scratch memory, order;

  // `used` queries have a gradient.
  ColumnSeries(const Problem<T>& p, int64_t b, const ColumnTask<T>& task, int64_t used,
               const Parallel& parallel)
      : serves(task.ends[kWarm + 1] == used && used >= kSeriesQueries && used < int64_t(1) << 32 &&
               has_series(p, b, *task.grid, of) && suits_series(*task.grid, of) &&
               all_finite(task, used)),
        root(0),
        memory(serves ? lay_out(nullptr, *task.grid, used) : 0),
        order(serves ? order_bytes(used) : 0) {
    if (!serves) return;
    lay_out(static_cast<char*>(memory.get()), *task.grid, used);
    for (int k = 1; k < layers.count; ++k)
      for (int64_t i = 0; i < layers.grid[k].num_blocks; ++i)
        bound_block(layers.grid[k - 1], layers.grid[k], i);
    take_queries(task, p.D, parallel);
    // Enough blocks for every thread.
    const int64_t wanted = parallel.threads == 1 ? 1 : 4 * parallel.threads;
    root = layers.count - 1;
    while (root > 0 && layers.grid[root].num_blocks < wanted) --root;
  }

  int64_t leaves() const { return layers.grid[root].block / layers.grid[0].block; }
  // The memory that pass_by_series needs for some queries.
  size_t list_bytes(int64_t count) const { return sizeof(uint32_t) * size_t((root + 1) * count); }

 private:
  // A sum of powers would turn an infinite gradient into NaN.
  static bool all_finite(const ColumnTask<T>& task, int64_t used) {
    for (int64_t q = 0; q < used; ++q)
      if (!is_finite(task.queries[q].grad)) return false;
    return true;
  }

  size_t lay_out(char* start, const Grid<T>& packed, int64_t used) {
    Carver carver{start};
    layers = lay_out_column_layers(packed, carver);
    queries = lay_out_queries<T>(packed.D, used, carver);
    return carver.used;
  }

  void take_queries(const ColumnTask<T>& task, int64_t D, const Parallel& parallel) {
    const View<T> y{task.y, {0, D, 1}};
    queries.place = sort_by_place(y, 0, queries.count, D, kColumnTile, order.get(), parallel);
    const double rate = of.rate;
    for (int64_t q = 0; q < queries.count; ++q) {
      const int64_t at = queries.place[q], tile = q / kColumnTile;
      const bool first = q % kColumnTile == 0;
      for (int64_t d = 0; d < D; ++d) {
        const T here = task.y[at * D + d];
        queries.y[d][q] = here;
        if (first || here < queries.low[d][tile]) queries.low[d][tile] = here;
        if (first || here > queries.high[d][tile]) queries.high[d][tile] = here;
      }
      const ColumnQuery<T>& query = task.queries[at];
      queries.shift[q] = query.shift;
      queries.log2_mass[q] = query.log2_mass;
      queries.grad[q] = query.grad;
      const double top = rate * query.shift - query.log2_mass;
      if (first || top > queries.top[tile]) queries.top[tile] = top;
    }
  }
};

LEBM_END_TARGET
