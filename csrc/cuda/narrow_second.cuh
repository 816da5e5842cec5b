// The second look of the row pass at D <= 4: queries whose exponents are all small, for which
// log sum exp loses F - m, and queries at beta = inf.
//
//   hot:       sum w (exp(-t) - 1), t = beta (E - m);  sum w (E - m);  sum w
//   cold:      sums over the latents of least energy, which share the posterior by their weights
//   relative:  sum w (E - F)^2 Phi(-beta (E - F)) = -dF/dbeta, once F is known (hot queries alone)
//
// It is always launched, as the host does not know of the temperatures, and over at once for blocks
// without such queries. Where a block has some, they share its threads among them: the fewer, the
// more threads for each. Every query is taken as having a scale, every latent as having a weight
// and an energy: 1 g and E + 0 are exact.
#pragma once

#include "finish.cuh"
#include "latents.cuh"

namespace lebm::cuda {

template <typename T, int kD>
struct SecondSums {
  static constexpr int kCount = kFields<kD, kEverything>;
  double fields[kCount], lost[kCount];
  T chunk[3];

  __device__ void flush() {
    fields[2] += double(chunk[0]);
    fields[3] += double(chunk[1]);
    fields[4] += double(chunk[2]);
    chunk[0] = chunk[1] = chunk[2] = T(0);
  }
};

// E - m as the first look and the columns have it.
template <typename T, int kD>
__device__ T excess_of(const Query<T, kD, true>& query, T beta, const T* record) {
  const T r = record[kD + 1];
  return is_steep(T(double(beta) * kLog2E), query.m) ? query.energy(record, r) - query.m
                                                     : query.energy(record, r - query.m);
}

// Adds a latent of weight w. Energies are relative to the reference's own, whose E - m (here
// query.a) is not quite 0: so one latent, or equal ones, have no slope.
template <typename T, int kD>
__device__ void add_hot(const Query<T, kD, true>& query, T beta, const T* record, T w,
                        SecondSums<T, kD>& sums) {
  if (!(w > T(0))) return;
  const T e = excess_of(query, beta, record) - query.a;
  const T minus = e < infinity(T()) ? power_minus_1(-beta * e) : T(-1);
  sums.chunk[0] += w;
  sums.chunk[1] = fused(w, e, sums.chunk[1]);
  sums.chunk[2] = fused(w, minus, sums.chunk[2]);
  sums.fields[SecondSums<T, kD>::kCount - 2] =
      fmin(sums.fields[SecondSums<T, kD>::kCount - 2], -fabs(double(e)));
}

// `state` is of the first look and perhaps of the second: m and F - m.
template <typename T>
__device__ T relative_term(T beta, T inverse, T e, T gap, T w) {
  const T above = e - gap, tau = -beta * above;
  if (tau >= T(-0.5) && tau <= T(0.5)) return w * above * above * phi_near(tau);
  if (!(e < infinity(T()))) return w * inverse * inverse;
  return w * fused(exponential(tau), tau - T(1), T(1)) * inverse * inverse;
}

template <typename T, int kD>
__device__ void add_cold(Query<T, kD, true>& query, const T* record, SecondSums<T, kD>& sums) {
  const T weight = record[kD];
  if (weight == -infinity(T())) return;
  const T e = query.energy(record, record[kD + 1]);
  if (e > query.m) return;
  double (&f)[SecondSums<T, kD>::kCount] = sums.fields;
  if (e != e || weight != weight) {
    f[2] = not_a_number();
    return;
  }
  if (e == infinity(T())) return;
  // The heaviest of the minima is the unit of their weights.
  const bool less = e < query.m, heavier = !less && double(weight) + f[1] > 1;
  if (less || heavier) {
    const double by = less ? (f[2] == f[2] ? 0.0 : 1.0) : exp2(-rint(double(weight)) - f[1]);
    for (int i = 2; i < SecondSums<T, kD>::kCount - 2; ++i) {
      f[i] *= by;
      sums.lost[i] *= by;
    }
    query.m = e;
    f[0] = double(e);
    f[1] = -rint(double(weight));
  }
  const double p = exp2(double(weight) + f[1]);
  add_exactly(f[2], sums.lost[2], p);
  for (int d = 0; d < kD; ++d) {
    const double x = double(query.difference(record, d)), g = double(record[d]);
    add_exactly(f[4 + d], sums.lost[4 + d], p * x);
    add_exactly(f[4 + kD + d], sums.lost[4 + kD + d], p * x * g);
    add_exactly(f[4 + 2 * kD + d], sums.lost[4 + 2 * kD + d], p * g);
  }
}

// The place of the nth of a block's `count` flags that are set, or -1.
__device__ inline int place_of(const bool* flags, int count, int nth) {
  for (int i = 0; i < count; ++i) {
    if (flags[i] && nth-- == 0) return i;
  }
  return -1;
}

template <typename T, int kD, bool kRelative>
__global__ void __launch_bounds__(kThreads)
    narrow_second_kernel(const __grid_constant__ RowTask<T> task) {
  using L = Layout<T, kD, true>;
  constexpr int kAll = kFields<kD, kEverything>;
  constexpr int kDoubles = L::kNumbers * int(sizeof(T)) / 8, kScratch = kAll * kThreads;
  LEBM_SHARED(double2, storage, [((kDoubles > kScratch ? kDoubles : kScratch) + 1) / 2]);
  T* const tile = reinterpret_cast<T*>(storage);
  const Problem<T>& problem = task.problem;
  const RowPlan& plan = task.plan;

  const int64_t blocks = (problem.M + plan.query_threads - 1) / plan.query_threads;
  const int64_t b = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * plan.query_threads;
  auto mode_of = [&](int64_t m) {
    const Mode mode = m < problem.M ? second_mode(task, b, m, kRelative) : Mode::kInvalid;
    return mode == Mode::kCold && kRelative ? Mode::kInvalid : mode;
  };
  auto may_look = [](Mode mode) { return mode == Mode::kHot || mode == Mode::kCold; };
  LEBM_SHARED(bool, flags, [kThreads]);
  const bool mine = int(threadIdx.x) < plan.query_threads;
  flags[threadIdx.x] = mine && may_look(mode_of(first + threadIdx.x));
  const int looking = __syncthreads_count(flags[threadIdx.x]);  // the flags are written
  if (looking == 0) return;
  const int query_threads = threads_for(looking, 1);
  const int query_thread = int(threadIdx.x) % query_threads;
  const int latent_thread = int(threadIdx.x) / query_threads;
  const int latent_threads = kThreads / query_threads;
  const int place = place_of(flags, plan.query_threads, query_thread);
  const bool looks = place >= 0;
  const int64_t m = first + place;
  const Mode mode = looks ? mode_of(m) : Mode::kInvalid;

  Query<T, kD, true> query;
  query.read(problem, b, looks ? m : 0, looks);
  const bool weighted = problem.log_weight.data;
  const T beta = looks ? load(problem.beta, b, m) : T(0);
  SecondSums<T, kD> sums;
  for (int i = 0; i < kAll; ++i) sums.fields[i] = sums.lost[i] = 0;
  sums.chunk[0] = sums.chunk[1] = sums.chunk[2] = T(0);
  sums.fields[kAll - 1] = double(problem.N);
  query.m = infinity(T());
  T gap = T(0);
  if (mode == Mode::kHot) {
    const double* state = task.out.state + 3 * (b * problem.M + m);
    query.m = T(state[0]);
    query.a = T(0);
    gap = T(state[2]);
  }
  if (!kRelative) {
    const int sample = int(problem.N < kSample ? problem.N : kSample);
    stage<T, kD, true>(task, b, 0, problem.N, sample, tile);
    __syncthreads();  // the sample is written
    if (mode == Mode::kHot) {
      const Best<T> best = best_of<T, kD, true, true>(query, -infinity(T()), tile, 0, sample, 1);
      if (best.record) {
        query.m = best.energy;
        query.a = excess_of(query, beta, best.record);
      }
      sums.fields[0] = double(query.m);
      sums.fields[1] = double(query.a);
    }
  }

  const int64_t begin = blockIdx.y * plan.split_latents;
  const int64_t end =
      begin + plan.split_latents < problem.N ? begin + plan.split_latents : problem.N;
  for (int64_t start = begin; start < end; start += L::kTile) {
    const int count = int(end - start < L::kTile ? end - start : L::kTile);
    __syncthreads();  // the last tile is read
    stage<T, kD, true>(task, b, start, 0, count, tile);
    __syncthreads();  // the tile is written
    int added = 0;
    for (int i = latent_thread; i < count && looks; i += latent_threads) {
      const T* record = tile + i * L::kWidth;
      const T w = weighted ? power(record[kD]) : T(1);
      if (kRelative) {
        if (w > T(0)) {
          const T e = excess_of(query, beta, record);
          const T inverse = beta > T(0) ? T(1) / beta : T(0);
          sums.chunk[0] += w;
          sums.chunk[1] += relative_term(beta, inverse, e, gap, w);
        }
      } else if (mode == Mode::kHot) {
        add_hot(query, beta, record, w, sums);
      } else {
        add_cold(query, record, sums);
      }
      if (++added % 32 == 0 && mode == Mode::kHot) sums.flush();
    }
    if (mode == Mode::kHot) sums.flush();
  }

  for (int i = 2; i < kAll - 2; ++i) sums.fields[i] += sums.lost[i];
  __syncthreads();  // the tile is read
  // Of hot queries all partial sums have one reference, whatever c.
  merge_threads<kD, kEverything>(double(INFINITY), query_threads, latent_threads,
                                 reinterpret_cast<double*>(storage), sums.fields);
  if (latent_thread != 0 || !looks) return;
  if (plan.splits > 1) {
    store_partial(task, blockIdx.y, b * problem.M + m, sums.fields);
  } else if (kRelative) {
    finish_relative(task, b, m, sums.fields[2], sums.fields[3]);
  } else {
    finish_second<T, kD>(task, b, m, mode, sums.fields);
  }
}

}  // namespace lebm::cuda
