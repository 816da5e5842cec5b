// Rows at low D, block by block about the block's centre; and the blocks that need no sweep.
// Included inside an instruction set's namespace, after rows.h.
//
// With u = y - s c and v = g - c for a block of centre c, and a reference energy m,
//
//   -beta (E - m) = -beta (|u|^2 - m) + beta (2 s u . v - s^2 . v^2)
//
// of which the first term is one a block and the second takes a product or two a pair, so that the
// sum over a block is 2^start sum_n 2^x. Blocks are small, so x is too: it needs no running
// minimum, and is more exact than differences of large numbers are. Its rounding is one of beta
// (|u|^2 - E), which is kept below kRise; below -most_fall it would round too much, or need the
// floor. Elsewhere the energies are taken one by one (add_block).
//
// A block's energies lie within (|u| -+ rho)^2, rho its radius. U, the least of the upper ends, is
// above an energy that is attained; a block whose exponents are all below that of U by log2 N and
// the width of a rounding is left out: the pruned mass is less than the sum's rounding.

template <typename T>
constexpr T kRise = 16;

// Rounding moves x by that of its largest term, at most this and, for few latents, less: F bears
// 16 roundings of (1 + log N) / beta.
template <typename T>
LEBM_INLINE T most_fall(const Grid<T>& grid) {
  const double most = 6 * (1 + __builtin_log(double(grid.N)));
  return most < 100 ? T(most) : T(100);
}

// Whether a rounding of a block's energies can be told from its exponents: at beta |u|^2 beyond
// this, only differences of attained energies are safe.
template <typename T>
LEBM_INLINE bool is_coarse(const Grid<T>& grid, int64_t i, T rate, T square) {
  const T low = grid.r_floor[i], high = grid.r_top[i];
  const T size = square + (low > 0 ? low : -low) + (high > 0 ? high : -high);
  return !(rate * size * Exponent<T>::epsilon < T(1.0 / 64));
}

// log2 of a share of the sum that cannot be seen, for the default tolerance.
template <typename T>
constexpr double kUnseen = sizeof(T) == 4 ? -26.0 : -55.0;

enum How : unsigned char { kLeftOut, kCentred, kOneByOne };

// A tile's queries side by side, and what a block means to each of them.
template <typename T, int kD>
struct Plan {
  T y[kD][kTile], s[kD][kTile], rate[kTile], upper[kTile], reference[kTile], least[kTile];
  T linear[kD][kTile], quadratic[kD][kTile];  // x = linear . v - quadratic . v^2
  T start[kTile], factor[kTile], factor_minus_1[kTile], rise[kTile], fall[kTile], floor[kTile];
  T square_u[kTile];  // |u|^2
  How how[kTile];
  T square[kMostLatents];  // |v|^2 (and latent energies above the block's least), times -rate if
                           // uniform
  bool uniform;            // one rate for all
  bool scaled;             // some s is not 1
};

// Loads the plan with a tile's queries; rows beyond `count` repeat the last.
template <typename T, int kD>
static void begin_plan(Plan<T, kD>& plan, const Query<T>* queries, int64_t count) {
  plan.uniform = true;
  plan.scaled = false;
  for (int64_t i = 0; i < kTile; ++i) {
    const Query<T>& q = queries[i < count ? i : count - 1];
    for (int d = 0; d < kD; ++d) {
      plan.y[d][i] = q.y[d];
      plan.s[d][i] = q.s[d];
      plan.scaled |= q.s[d] != T(1);
    }
    plan.rate[i] = q.rate;
    plan.uniform &= q.rate == queries[0].rate;
    plan.upper[i] = plan.reference[i] = Exponent<T>::infinity;
    plan.least[i] = T(0);
  }
}

// |u|^2 and rho of a block for a vector of queries.
template <typename T, int kD>
LEBM_INLINE void reach_of(const Grid<T>& grid, int64_t i, const Plan<T, kD>& plan, int64_t q,
                          Vec<T>* u, Vec<T>& square, Vec<T>& radius) {
  square = broadcast(T(0));
  radius = broadcast(T(0));
  for (int d = 0; d < kD; ++d) {
    const Vec<T> s = load(plan.s[d] + q);
    u[d] = fnma(s, broadcast(grid.centre[i * kD + d]), load(plan.y[d] + q));
    square = fma(u[d], u[d], square);
    const Vec<T> half = mul(s, broadcast(grid.half[i * kD + d]));
    radius = fma(half, half, radius);
  }
  radius = root(radius);
}

// Finds `upper`, the least upper end of the blocks' energies, and a `reference` m: the least |u|^2,
// to which starts and exponents are small, of blocks whose exponents then don't underflow, and of
// the others the upper end, below which they have an energy.
template <typename T, int kD>
static void bound(const Grid<T>& grid, int64_t first_block, int64_t last_block, Plan<T, kD>& plan,
                  int64_t count) {
  for (int64_t q = 0; q < count; q += kLanes<T>) {
    Vec<T> upper = load(plan.upper + q), reference = load(plan.reference + q);
    for (int64_t i = first_block; i < last_block; ++i) {
      if (!(grid.r_floor[i] <= grid.r_top[i])) continue;
      Vec<T> u[kD], square, radius;
      reach_of<T, kD>(grid, i, plan, q, u, square, radius);
      const Vec<T> distance = root(square), far = add(distance, radius);
      const Vec<T> end = fma(far, far, broadcast(grid.r_top[i]));
      const Vec<T> fall = mul(mul(load(plan.rate + q), radius), add(distance, far));
      upper = min(upper, end);
      reference = min(reference, select_less(fall, broadcast(most_fall(grid)),
                                             add(square, broadcast(grid.r_floor[i])), end));
    }
    store(plan.upper + q, upper);
    store(plan.reference + q, reference);
  }
}

// Decides what to do about block i for each query, and prepares the centred ones.
template <typename T, int kD>
static void plan_block(const Grid<T>& grid, int64_t i, double unseen, bool exact,
                       const Query<T>* queries, const Sums* sums, Plan<T, kD>& plan,
                       int64_t count) {
  const bool empty = !(grid.r_floor[i] <= grid.r_top[i]);
  const T threshold = T(unseen - __builtin_log2(double(grid.N))), fall = most_fall(grid);
  for (int64_t k = 0; k < count; ++k) plan.least[k] = T(sums[k].least);
  for (int64_t q = 0; q < count; q += kLanes<T>) {
    Vec<T> u[kD], square, radius;
    reach_of<T, kD>(grid, i, plan, q, u, square, radius);
    const Vec<T> rate = load(plan.rate + q), near = sub(root(square), radius);
    const Vec<T> nearest = max(near, broadcast(T(0)));
    store(plan.floor + q, fma(nearest, nearest, broadcast(grid.r_floor[i])));
    store(plan.square_u + q, square);
    store(plan.rise + q, mul(rate, fnma(nearest, nearest, square)));
    // x >= -rate rho (2 |u| + rho), and |u| - rho = near
    const Vec<T> twice = add(add(near, near), mul(broadcast(T(3)), radius));
    store(plan.fall + q, mul(mul(rate, radius), twice));
    const Vec<T> excess = add(sub(square, load(plan.least + q)), broadcast(grid.r_floor[i]));
    const Vec<T> start = sub(broadcast(T(0)), mul(rate, excess));
    store(plan.start + q, start);
    store(plan.factor + q, exp2_of<T>(start));
    store(plan.factor_minus_1 + q, exp2m1_of<T>(start));
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(plan.s[d] + q), by = mul(rate, s);
      store(plan.linear[d] + q, mul(add(by, by), u[d]));
      store(plan.quadratic[d] + q, mul(by, s));
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    const Mode mode = queries[k].mode;
    const T lowest = plan.floor[k];
    plan.how[k] = kOneByOne;
    if (mode == kSkip) {
      plan.how[k] = kLeftOut;
    } else if (mode == kCold) {
      // A margin for the rounding of the bounds themselves.
      if (lowest * (1 - 16 * Exponent<T>::epsilon) > plan.upper[k]) plan.how[k] = kLeftOut;
    } else if (mode == kNormal || mode == kSmall) {
      if (empty || plan.rate[k] * (plan.upper[k] - lowest) < threshold) {
        plan.how[k] = kLeftOut;
      } else if (!exact && plan.rise[k] <= kRise<T> && plan.fall[k] <= fall &&
                 !is_coarse(grid, i, plan.rate[k], plan.square_u[k])) {
        plan.how[k] = kCentred;
      }
    }
  }
}

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
    const int64_t end = begin + kRun < size ? begin + kRun : size;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
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

// A query to which a block does not matter: it has the weights alone.
static void leave_out(Mode mode, double weight, Sums& a) {
  a.seen += weight;
  if (mode == kSmall) a.sum -= weight;
}

// A tile of queries against a range of blocks, at low D, without log-weights. `exact`: m and its
// index must be those of the least energy itself.
template <typename T, int kD, Level kLevel>
static void sweep_tile_centred(const Grid<T>& grid, int64_t first_block, int64_t last_block,
                               double unseen, bool exact, const Query<T>* queries, int64_t count,
                               T* energy, Sums* sums, Vectors* vectors) {
  Plan<T, kD> plan;
  begin_plan(plan, queries, count);
  bound(grid, first_block, last_block, plan, count);
  for (int64_t k = 0; k < count; ++k) {
    const bool sums_exponentials = queries[k].mode == kNormal || queries[k].mode == kSmall;
    if (!exact && sums_exponentials && !is_finite(sums[k].least) && plan.reference[k] < kAbsent<T>)
      sums[k].least = plan.reference[k];
  }
  for (int64_t i = first_block; i < last_block; ++i) {
    const Block<T> block = grid.at(i);
    plan_block(grid, i, unseen, exact, queries, sums, plan, count);
    int64_t normal[kTile], small[kTile], normals = 0, smalls = 0;
    for (int64_t k = 0; k < count; ++k) {
      if (plan.how[k] == kLeftOut) {
        leave_out(queries[k].mode, grid.block_weight[i], sums[k]);
      } else if (plan.how[k] == kCentred) {
        if (queries[k].mode == kSmall)
          small[smalls++] = k;
        else
          normal[normals++] = k;
      } else {
        const T smallest = energies<T, kD>(block, grid.block, queries[k].y, queries[k].s, energy);
        BlockSums<T> unused;
        add_block<T, kD, kLevel>(grid, block, queries[k], smallest, energy, sums[k], vectors[k],
                                 unused);
        plan.upper[k] = smallest < plan.upper[k] ? smallest : plan.upper[k];
      }
    }
    if (normals)
      centred_block<T, kD, kLevel, false>(grid, block, plan, normal, normals, queries, sums,
                                          vectors);
    if (smalls)
      centred_block<T, kD, kLevel, true>(grid, block, plan, small, smalls, queries, sums, vectors);
  }
}
