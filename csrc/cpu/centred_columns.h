// The column pass at low D, block by block about the block's centre, as centred.h does for rows.
// Included inside an instruction set's namespace, after columns.h.
//
// The share of a pair is 2^start 2^x with x = linear . v - rate |v|^2, a sum of small numbers; the
// gradient's difference y - s g is taken as it stands, for it must vanish where y = s g.

// Queries of a chunk side by side, what a block means to them, and those that it must take one by
// one.
template <typename T, int kD>
struct CentredChunk {
  T y[kD][kChunk], s[kD][kChunk], u[kD][kChunk], rate[kChunk], least[kChunk], whole[kChunk];
  T square[kChunk], radius[kChunk], factor[kChunk];
  // The centred ones, packed.
  int64_t centred;
  T at_y[kD][kChunk], at_s[kD][kChunk], linear[kD][kChunk], quadratic[kD][kChunk];
  T minus_rate[kChunk], share[kChunk];
  // The others, as columns.h takes them.
  int64_t others;
  ColumnQuery<T> other[kChunk + 3];
  T other_y[(kChunk + 3) * kD], other_s[(kChunk + 3) * kD];
};

// u, |u|^2, rho and 2^start of the queries [first, first + count), in the arithmetic of centred.h:
// beta |u|^2 may be so large that a last bit of it matters.
template <typename T, int kD>
static void measure_chunk(const ColumnTask<T>& task, int64_t i, int64_t first, int64_t count,
                          CentredChunk<T, kD>& chunk) {
  const Grid<T>& grid = *task.grid;
  for (int64_t k = 0; k < (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>; ++k) {
    const int64_t q = first + (k < count ? k : count - 1);
    for (int d = 0; d < kD; ++d) {
      chunk.y[d][k] = task.y[q * kD + d];
      chunk.s[d][k] = task.s[q * kD + d];
    }
    chunk.rate[k] = task.queries[q].rate;
    chunk.least[k] = task.queries[q].least;
    chunk.whole[k] = task.queries[q].whole;
  }
  const Vec<T> r_floor = broadcast(grid.r_floor[i]);
  for (int64_t k = 0; k < count; k += kLanes<T>) {
    Vec<T> square = broadcast(T(0)), radius = broadcast(T(0));
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(chunk.s[d] + k);
      const Vec<T> u = fnma(s, broadcast(grid.centre[i * kD + d]), load(chunk.y[d] + k));
      store(chunk.u[d] + k, u);
      square = fma(u, u, square);
      const Vec<T> half = mul(s, broadcast(grid.half[i * kD + d]));
      radius = fma(half, half, radius);
    }
    store(chunk.square + k, square);
    store(chunk.radius + k, root(radius));
    const Vec<T> excess = add(sub(square, load(chunk.least + k)), r_floor);
    const Vec<T> start = sub(broadcast(T(0)), mul(load(chunk.rate + k), excess));
    store(chunk.factor + k, exp2_of<T>(sub(start, load(chunk.whole + k))));
  }
}

// What block i means to the queries [first, last), at most kChunk.
template <typename T, int kD>
static void plan_chunk(const ColumnTask<T>& task, int64_t i, int64_t first, int64_t last,
                       CentredChunk<T, kD>& chunk) {
  const Grid<T>& grid = *task.grid;
  const T threshold = T(task.unseen - __builtin_log2(double(grid.N)));
  const T most = most_fall(grid);
  measure_chunk(task, i, first, last - first, chunk);
  chunk.centred = chunk.others = 0;
  for (int64_t k = 0; k < last - first; ++k) {
    const ColumnQuery<T>& query = task.queries[first + k];
    const T distance = root_of(chunk.square[k]), radius = chunk.radius[k];
    const T nearest = distance > radius ? distance - radius : T(0);
    const T floor = nearest * nearest + grid.r_floor[i];
    // p <= 2^this: a latent's gradient could not show it.
    if (query.rate * (query.least - floor) - query.whole < threshold) continue;
    const T fall = query.rate * radius * (2 * distance + radius);
    if (query.rate * (chunk.square[k] - nearest * nearest) > kRise<T> || fall > most ||
        is_coarse(grid, i, query.rate, chunk.square[k])) {
      const int64_t at = chunk.others++;
      chunk.other[at] = query;
      for (int d = 0; d < kD; ++d) {
        chunk.other_y[at * kD + d] = chunk.y[d][k];
        chunk.other_s[at * kD + d] = chunk.s[d][k];
      }
      continue;
    }
    const int64_t at = chunk.centred++;
    chunk.minus_rate[at] = -query.rate;
    chunk.share[at] = query.share * chunk.factor[k];
    for (int d = 0; d < kD; ++d) {
      const T by = query.rate * chunk.s[d][k];
      chunk.at_y[d][at] = chunk.y[d][k];
      chunk.at_s[d][at] = chunk.s[d][k];
      chunk.linear[d][at] = (by + by) * chunk.u[d][k];
      chunk.quadratic[d][at] = by * chunk.s[d][k];
    }
  }
}

template <typename T, int kD, bool kHasScale, bool kFloor>
static void centred_chunk(const Grid<T>& grid, const Block<T>& block,
                          const CentredChunk<T, kD>& chunk, const ColumnSums<T>& sums) {
  const int64_t size = grid.block;
  const T r_floor = grid.r_floor[block.first / size];
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> g[kD], v[kD], sum_g[kD], r = broadcast(T(0));
    Vec<T> square = kFloor ? sub(load(block.r + j), broadcast(r_floor)) : broadcast(T(0));
    for (int d = 0; d < kD; ++d) {
      g[d] = load(block.g + d * size + j);
      v[d] = load(block.v + d * size + j);
      sum_g[d] = broadcast(T(0));
      if (!kHasScale) square = fma(v[d], v[d], square);
    }
    for (int64_t q = 0; q < chunk.centred; ++q) {
      Vec<T> x =
          !kHasScale || kFloor ? mul(broadcast(chunk.minus_rate[q]), square) : broadcast(T(0));
      for (int d = 0; d < kD; ++d) {
        const Vec<T> linear = broadcast(chunk.linear[d][q]);
        x = fma(v[d], kHasScale ? fnma(broadcast(chunk.quadratic[d][q]), v[d], linear) : linear, x);
      }
      const Vec<T> share = mul(exp2_of<T, kFloor>(x), broadcast(chunk.share[q]));
      r = add(r, share);
      for (int d = 0; d < kD; ++d) {
        const Vec<T> s = broadcast(chunk.at_s[d][q]), y = broadcast(chunk.at_y[d][q]);
        const Vec<T> difference = kHasScale ? fnma(s, g[d], y) : sub(y, g[d]);
        sum_g[d] = fma(kHasScale ? mul(share, s) : share, difference, sum_g[d]);
      }
    }
    for (int d = 0; d < kD; ++d) store(sums.g + d * size + j, sum_g[d]);
    store(sums.r + j, r);
  }
  add_chunk(kD, size, sums);
}

// Queries [first, last), at most kChunk, all kFinite, against a block without log-weights.
template <typename T, int kD>
static void finite_queries_centred(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                                   int64_t last, CentredChunk<T, kD>& chunk, T* scratch,
                                   const ColumnSums<T>& sums) {
  const Grid<T>& grid = *task.grid;
  const int64_t i = block.first / grid.block;
  if (!(grid.r_floor[i] <= grid.r_top[i])) return;
  plan_chunk(task, i, first, last, chunk);
  if (chunk.centred) {
    const bool floor = grid.r_floor[i] != grid.r_top[i];
    if (task.has_scale) {
      centred_chunk<T, kD, true, true>(grid, block, chunk, sums);
    } else {
      floor ? centred_chunk<T, kD, false, true>(grid, block, chunk, sums)
            : centred_chunk<T, kD, false, false>(grid, block, chunk, sums);
    }
  }
  if (chunk.others) {
    ColumnTask<T> others = task;
    others.queries = chunk.other;
    others.y = chunk.other_y;
    others.s = chunk.other_s;
    treat<T, kD, kFinite>(others, block, 0, chunk.others, scratch, sums);
  }
}
