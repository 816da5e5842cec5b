// Sums over a block about its centre, pair by pair, at low D and without log-weights (see plan.h).
// Included inside an instruction set's namespace.
//
//     2^x,   x = linear . v - quadratic . v^2,   linear = 2 rate s u,   quadratic = rate s^2

// The sums over a block of two queries whose constants lie at `at` in the plan; of them, `count`
// are wanted.
template <typename T, int kD, Level kLevel, bool kIsSmall, bool kScaled, bool kUniform, bool kFloor>
static void centred_sums(const Grid<T>& grid, const Block<T>& block, const Plan<T, kD>& plan,
                         const int64_t* at, int count, const Query<T>* queries, Sums* sums,
                         Vectors* vectors) {
  constexpr int kQ = 2;
  const int64_t size = grid.block;
  const Vec<T> zero = broadcast(T(0));
  Vec<T> linear[kQ][kD], quadratic[kQ][kD], rate[kQ];
  Vec<T> total[kQ], excess[kQ], first[kQ][kD], second[kQ][kD];
  for (int k = 0; k < kQ; ++k) {
    rate[k] = broadcast(-plan.rate[at[k]]);
    total[k] = excess[k] = zero;
    for (int d = 0; d < kD; ++d) {
      linear[k][d] = broadcast(plan.linear[d][at[k]]);
      quadratic[k][d] = broadcast(plan.quadratic[d][at[k]]);
      first[k][d] = second[k][d] = zero;
    }
  }
  // Sums of sixteen vectors are added up, which rounds less than one long sum.
  constexpr int64_t kRun = 16 * kLanes<T>;
  for (int64_t begin = 0; begin < size; begin += kRun) {
    Vec<T> part[kQ];
    for (int k = 0; k < kQ; ++k) part[k] = zero;
    for (int64_t j = begin; j < begin + kRun; j += kLanes<T>) {
      Vec<T> v[kD];
      for (int d = 0; d < kD; ++d) v[d] = load(block.v + d * size + j);
      const Vec<T> square = load(plan.square + j);
      for (int k = 0; k < kQ; ++k) {
        Vec<T> x = kUniform ? square : mul(rate[k], square);
        for (int d = 0; d < kD; ++d)
          x = fma(v[d], kScaled ? fnma(quadratic[k][d], v[d], linear[k][d]) : linear[k][d], x);
        Vec<T> p;
        if constexpr (kIsSmall) {
          // Absent latents, which need the floor, have no weight and would bring -1 each.
          const Vec<T> weight = kFloor ? load(block.w + j) : broadcast(T(1));
          const Vec<T> minus = exp2m1_of<T, kFloor>(x);
          const Vec<T> weighted = kFloor ? mul(weight, minus) : minus;
          part[k] = add(part[k], weighted);
          p = add(weighted, weight);
        } else {
          p = exp2_of<T, kFloor>(x);
          part[k] = add(part[k], p);
        }
        if constexpr (kLevel >= kMean) {
          for (int d = 0; d < kD; ++d) {
            if constexpr (kLevel == kAllMoments) {
              const Vec<T> pv = mul(p, v[d]);
              first[k][d] = add(first[k][d], pv);
              second[k][d] = fma(pv, v[d], second[k][d]);
            } else {
              first[k][d] = fma(p, v[d], first[k][d]);
            }
          }
          if constexpr (kLevel == kAllMoments && !kIsSmall) {
            // As in sweep: the floor of exp2 times an absent latent's x must be nothing.
            const Vec<T> bits = kFloor ? max(x, broadcast(-Exponent<T>::far)) : x;
            excess[k] = fma(p, bits, excess[k]);
          }
        }
      }
    }
    for (int k = 0; k < kQ; ++k) total[k] = add(total[k], part[k]);
  }
  const double weight = grid.block_weight[block.first / size];
  for (int k = 0; k < count; ++k) {
    const int64_t i = at[k];
    Sums& a = sums[i];
    const double factor = plan.factor[i];
    const double sum_ = sum(total[k]);
    const double mass = kIsSmall ? factor * (sum_ + weight) : factor * sum_;
    a.sum += kIsSmall ? factor * sum_ + weight * plan.factor_minus_1[i] : mass;
    a.mass += mass;
    a.seen += weight;
    if constexpr (kLevel >= kMean) {
      if (kLevel == kAllMoments && !kIsSmall)
        a.excess += factor * sum(excess[k]) + plan.start[i] * mass;
      for (int d = 0; d < kD; ++d)
        add_moments(d, factor * sum(first[k][d]), factor * sum(second[k][d]), mass, block.centre[d],
                    queries[i].y[d], queries[i].s[d], vectors[i]);
    }
  }
}

// All centred queries of a block, in pairs.
template <typename T, int kD, Level kLevel, bool kIsSmall, bool kScaled, bool kUniform, bool kFloor>
static void centred_queries(const Grid<T>& grid, const Block<T>& block, const Plan<T, kD>& plan,
                            const int64_t* at, int64_t count, const Query<T>* queries, Sums* sums,
                            Vectors* vectors) {
  for (int64_t k = 0; k < count; k += 2) {
    // An odd one out is summed twice, once for nobody.
    const int64_t pair[2] = {at[k], at[k + 1 < count ? k + 1 : k]};
    centred_sums<T, kD, kLevel, kIsSmall, kScaled, kUniform, kFloor>(
        grid, block, plan, pair, k + 1 < count ? 2 : 1, queries, sums, vectors);
  }
}

template <typename T, int kD, Level kLevel, bool kIsSmall>
static void centred_block(const Grid<T>& grid, const Block<T>& block, Plan<T, kD>& plan,
                          const int64_t* at, int64_t count, const Query<T>* queries, Sums* sums,
                          Vectors* vectors) {
  const int64_t i = block.first / grid.block;
  const bool floor = !grid.whole[i] || grid.r_floor[i] != grid.r_top[i];
  const bool uniform = plan.uniform && !plan.scaled;
  for (int64_t j = 0; j < grid.block; j += kLanes<T>) {
    Vec<T> square = sub(load(block.r + j), broadcast(grid.r_floor[i]));
    if (!plan.scaled) {
      for (int d = 0; d < kD; ++d) {
        const Vec<T> v = load(block.v + d * grid.block + j);
        square = fma(v, v, square);
      }
    }
    store(plan.square + j, uniform ? mul(broadcast(-plan.rate[0]), square) : square);
  }
  auto call = [&](auto scaled, auto same, auto floored) {
    centred_queries<T, kD, kLevel, kIsSmall, scaled.value, same.value, floored.value>(
        grid, block, plan, at, count, queries, sums, vectors);
  };
  if (plan.scaled) {
    call(Yes{}, No{}, Yes{});
  } else if (!uniform) {
    call(No{}, No{}, Yes{});
  } else {
    floor ? call(No{}, Yes{}, Yes{}) : call(No{}, Yes{}, No{});
  }
}
