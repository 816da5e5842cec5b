// The row pass: queries outside, latents inside, a block at a time.
// Included inside an instruction set's namespace.
//
// For every query it finds, in one sweep,
//     m = min_n E,   L = log sum_n w exp(-beta (E - m)),   F = m - L/beta,
// and, where slopes are wanted, moments of p = w exp(-beta (E - m) - L). The reference m is the
// least energy seen so far: when a block brings a lesser one, the sums are rescaled, which happens
// once a block at most. Sums run in vector lanes within a block and in double across blocks, but
// for vectors with their roundings kept where T is double (Total).
//
// Where all of beta (E - m) is small, the logarithm of a sum near 1 would lose L, so that the sum
// of w (exp(-beta (E - m)) - 1) is taken instead (kSmall), or at beta = 0 that of w (E - m) (kHot).
// Queries whose sum turns out near 1 are swept again as kSmall; where dF/dbeta is wanted in those
// modes, one more sweep (kSlope) sums
//     dF/dbeta = -sum_n w (E - F)^2 Phi(-beta (E - F)),   Phi(x) = (e^x (x - 1) + 1) / x^2,
// which is -KL(p|w)/beta^2 without its cancellation; elsewhere KL = -beta <E - m> - L serves. Where
// one latent has nearly all of the weight, its E - F is a rounding, whose square would be the sum:
// so the sums are about a c near F, which is E of that latent where F cannot be told from it
// (settle_gap), and with a = E - c and Psi(x) = (e^x - 1) / x
//     delta = F - c = -log(1 - beta sum_n w a Psi(-beta a)) / beta,
//     dF/dbeta = -e^(beta delta) (sum_n w a^2 Phi(-beta a) - delta^2 Phi(-beta delta)).

constexpr int64_t kTile = 32;

enum Mode : unsigned char { kSkip, kNormal, kSmall, kHot, kCold, kSlope };

// kSmall is wanted where L exceeds this: below, a relative error of the sum is one of F - m.
constexpr double kSmallL = -1.0;

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.6931471805599453094;

// Whether exponents cannot be told from those at beta = inf, because their unit overflows.
template <typename T>
LEBM_INLINE bool is_cold(double beta) {
  return !is_finite(T(beta * kLog2E));
}

// What is summed beside the sum itself: nothing; p v; p v, p v^2 and p log2 p.
enum Level { kSumOnly, kMean, kAllMoments };

template <typename T>
struct Query {
  Mode mode;
  T rate;     // beta log2 e
  T gap;      // c - m, for kSlope
  T inverse;  // 1 / beta, for kSlope; 0 at beta = 0
  T stretch;  // largest s^2, beyond kFewDimensions
  double beta;
  const T *y, *s;
};

// The sums of one query over the blocks seen so far, relative to `least` (m) and to 2^offset.
template <typename T>
struct Sums {
  double least, offset;
  Total<T> sum;  // of p; of p - w in kSmall, of w (m - E) in kHot, of w a^2 Phi in kSlope
  // Of p, its value alone rounded as vectors are, which it divides; of w a Psi in kSlope.
  Total<T> mass;
  Total<T> excess;  // of p log2(exp(-beta (E - m)))
  Total<T> seen;    // of w
  int64_t index;    // where the least energy is
};

struct Vectors {     // [D] each, or null
  double* residual;  // sum p (y - s g)
  double* stretch;   // sum p g (y - s g)
  double* mean;      // sum p g
};

template <typename T>
static void clear(Sums<T>& a, Vectors& v, int64_t D, double least) {
  a = {least, -__builtin_inf(), {}, {}, {}, {}, 0};
  for (int64_t d = 0; d < D; ++d) {
    if (v.residual) v.residual[d] = 0;
    if (v.stretch) v.stretch[d] = 0;
    if (v.mean) v.mean[d] = 0;
  }
}

template <typename T>
static void multiply(Sums<T>& a, Vectors& v, int64_t D, double factor) {
  a.mass *= factor;
  a.excess *= factor;
  for (int64_t d = 0; d < D; ++d) {
    if (v.residual) v.residual[d] *= factor;
    if (v.stretch) v.stretch[d] *= factor;
    if (v.mean) v.mean[d] *= factor;
  }
}

// Makes the sums relative to a lesser m.
template <typename T>
static void lower_least(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& v, int64_t D,
                        double m) {
  const double drop = a.least - m;
  a.least = m;
  // Weights may underflow where p does not: a block may have brought mass without weight.
  if (!(drop > 0) || (a.seen == 0 && a.mass == 0)) return;
  const double shift = double(q.rate) * drop;
  switch (q.mode) {
    case kNormal:
      if (a.mass == 0) break;  // left out so far, and the shift may be infinite
      a.excess += -shift * a.mass;
      if (weighted) {
        a.offset -= shift;
      } else {
        const double factor = __builtin_exp2(-shift);
        a.sum *= factor;
        multiply(a, v, D, factor);
      }
      break;
    case kSmall: {
      const double factor = __builtin_exp2(-shift);
      a.sum *= factor;
      a.sum += a.seen * __builtin_expm1(-shift * kLn2);
      multiply(a, v, D, factor);
      break;
    }
    case kHot:
      a.sum += -drop * a.seen;
      break;
    case kCold:
      a.sum = {};
      a.offset = -__builtin_inf();
      multiply(a, v, D, 0.0);
      break;
    default:
      break;
  }
}

// Makes the sums relative to a larger 2^offset (weighted kNormal and kCold only).
template <typename T>
static void raise_offset(Sums<T>& a, Vectors& v, int64_t D, double offset) {
  if (!(offset > a.offset)) return;
  const double factor = a.mass == 0 ? 0.0 : __builtin_exp2(a.offset - offset);
  a.offset = offset;
  a.sum *= factor;
  multiply(a, v, D, factor);
}

// a += b, in the order of the latents (a before b): the first of equal minima keeps the index.
template <typename T>
static void merge(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& va, Sums<T>& b,
                  Vectors& vb, int64_t D) {
  if (b.least < a.least || (b.least == a.least && b.index < a.index)) a.index = b.index;
  lower_least(q, weighted, a, va, D, b.least < a.least ? b.least : a.least);
  lower_least(q, weighted, b, vb, D, a.least);
  raise_offset(a, va, D, b.offset);
  raise_offset(b, vb, D, a.offset);
  a.sum += b.sum;
  a.mass += b.mass;
  a.excess += b.excess;
  a.seen += b.seen;
  for (int64_t d = 0; d < D; ++d) {
    if (va.residual) va.residual[d] += vb.residual[d];
    if (va.stretch) va.stretch[d] += vb.stretch[d];
    if (va.mean) va.mean[d] += vb.mean[d];
  }
}

// A query to which a block does not matter: it has the weights alone.
template <typename T>
static void leave_out(Mode mode, double weight, Sums<T>& a) {
  a.seen += weight;
  if (mode == kSmall) a.sum += -weight;
}

// One block's sums, still in T.
template <typename T>
struct BlockSums {
  T sum, mass, excess;
};

// Sums of doubles add up those of sixteen vectors, which rounds less than one long sum.
template <typename T>
LEBM_INLINE int64_t run_length(int64_t size) {
  return sizeof(T) == 8 && size > 16 * kLanes<T> ? 16 * kLanes<T> : size;
}

// p of every latent of a block, from its energies: summed, and handed to `moments` a vector at a
// time, until after a run of them `add_run` adds up what that has summed. kWeighted is only told
// apart where it costs.
template <typename T, Mode kMode, bool kWeighted, bool kExcess, typename Moments, typename AddRun>
static LEBM_INLINE BlockSums<T> sweep(const Block<T>& block, int64_t size, const Query<T>& q, T m,
                                      T offset, const T* energy, Moments&& moments,
                                      AddRun&& add_run) {
  const Vec<T> least_ = broadcast(m), rate = broadcast(-q.rate), offset_ = broadcast(offset);
  const Vec<T> zero = broadcast(T(0));
  struct {
    Vec<T> sum, mass, excess;
  } const none{zero, zero, zero};
  auto all = none;
  const int64_t run = run_length<T>(size);
  for (int64_t begin = 0; begin < size; begin += run) {
    auto part = none;
    const int64_t end = begin + run < size ? begin + run : size;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      const Vec<T> e = load(energy + j);
      const Vec<T> excess = sub(e, least_);
      Vec<T> p;
      if constexpr (kMode == kNormal) {
        const Vec<T> x = mul(excess, rate);
        p = exp2_of<T>(kWeighted ? add(x, sub(load(block.log2_w + j), offset_)) : x);
        // The floor of exp2 times an absent latent's x must be nothing.
        if (kExcess) part.excess = fma(p, max(x, broadcast(-Exponent<T>::far)), part.excess);
      } else if constexpr (kMode == kSmall) {
        Vec<T> value;
        const Vec<T> weight = load(block.w + j);
        const Vec<T> minus = mul(weight, exp2m1_of<T>(mul(excess, rate), value));
        // A small p has lost digits to the 1; many that are alike lose the same ones.
        p = sizeof(T) == 4 ? add(minus, weight) : mul(weight, value);
        part.sum = add(part.sum, minus);
      } else if constexpr (kMode == kHot) {
        p = load(block.w + j);
        part.sum = fnma(p, excess, part.sum);
      } else {
        // w a^2 Phi(x) with x = -beta a; where |x| >= 1, the same as w (e^x (x - 1) + 1) / beta^2,
        // whose factors don't overflow for a latent far away.
        const Vec<T> one = broadcast(T(1)), a = sub(excess, broadcast(q.gap));
        const Vec<T> bits = max(mul(a, rate), broadcast(-Exponent<T>::far));
        const Vec<T> x = mul(bits, broadcast(T(kLn2))), square = mul(x, x);
        const Vec<T> weight = load(block.w + j), inverse = broadcast(q.inverse);
        const Vec<T> near = mul(mul(mul(a, weight), a), phi_near<T>(x));
        Vec<T> power;
        const Vec<T> minus = exp2m1_of<T>(bits, power);
        const Vec<T> far = mul(mul(fma(power, sub(x, one), one), inverse), inverse);
        p = select_less(square, one, near, mul(weight, far));
        // An absent latent's square may overflow; its weight must win.
        p = select_less(zero, weight, p, zero);
        if constexpr (kWeighted) {
          // Psi, which is 1 where e^x - 1 is x and 1 / beta may overflow. Where weights are equal,
          // c is F, and this would sum to nothing.
          const Vec<T> linear = broadcast(sizeof(T) == 4 ? T(1e-20) : T(1e-36));
          const Vec<T> plus = mul(sub(zero, minus), inverse);
          const Vec<T> first = mul(weight, select_less(square, linear, a, plus));
          part.sum = add(part.sum, select_less(zero, weight, first, zero));
        }
      }
      part.mass = add(part.mass, p);
      moments(j, p);
    }
    all.sum = add(all.sum, part.sum);
    all.mass = add(all.mass, part.mass);
    all.excess = add(all.excess, part.excess);
    add_run();
  }
  const T total = sum(all.mass);
  if (kMode == kSlope) return {total, sum(all.sum), T(0)};
  const bool apart = kMode == kSmall || kMode == kHot;
  return {apart ? sum(all.sum) : total, total, kExcess ? sum(all.excess) : T(0)};
}

// The sum of p = exp(-beta (E - m)) of a block, without log-weights; kStore: energies become p.
template <typename T, bool kStore>
static T sum_powers(int64_t size, T rate, T m, T* energy) {
  using Power = Exp2<T>;
  constexpr int K = 2;
  const Power power;
  const Vec<T> least_ = broadcast(m), by = broadcast(-Power::kSteps * rate);
  const Vec<T> lowest = broadcast(Power::kSteps * Power::kLowest),
               unit = broadcast(T(Power::kUnit));
  Vec<T> total[K];
  for (int k = 0; k < K; ++k) total[k] = broadcast(T(0));
  for (int64_t j = 0; j < size; j += K * kLanes<T>) {
    Vec<T> x[K], p[K], scale[K];
    for (int k = 0; k < K; ++k)
      x[k] = max(mul(sub(load(energy + j + k * kLanes<T>), least_), by), lowest);
    power(x, p, scale);
    for (int k = 0; k < K; ++k) {
      if constexpr (kStore) {
        p[k] = Power::value(p[k], scale[k]);
        if constexpr (Power::kUnit != 1) p[k] = mul(p[k], unit);
        store(energy + j + k * kLanes<T>, p[k]);
        total[k] = add(total[k], p[k]);
      } else {
        total[k] = Power::add_to(total[k], p[k], scale[k]);
      }
    }
  }
  const T sum_ = sum(add(total[0], total[1]));
  return kStore ? sum_ : T(sum_ * Power::kUnit);
}

// The largest log2(w) - rate (E - m) of a block: where the weighted sum must be anchored.
template <typename T, bool kIsCold>
static T largest_exponent(const Block<T>& block, int64_t size, T rate, T m, const T* energy) {
  const Vec<T> nothing = broadcast(-Exponent<T>::infinity);
  Vec<T> smallest = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    const Vec<T> e = load(energy + j), log2_w = load(block.log2_w + j);
    const Vec<T> x = kIsCold ? select_equal(e, broadcast(m), log2_w, nothing)
                             : fma(sub(e, broadcast(m)), broadcast(-rate), log2_w);
    smallest = min(smallest, sub(broadcast(T(0)), x));
  }
  return -least(smallest);
}

// From sum p v and sum p v^2 of a block to the sums over p of g, y - s g and g (y - s g).
LEBM_INLINE void add_moments(int64_t d, double first, double second, double mass, double centre,
                             double y, double s, Vectors& v) {
  const double u = y - s * centre;
  if (v.mean) v.mean[d] += centre * mass + first;
  if (v.residual) v.residual[d] += u * mass - s * first;
  if (v.stretch) v.stretch[d] += centre * (u * mass - s * first) + u * first - s * second;
}

// The first, as the latents were given, of those before `bound` whose energy is `smallest`.
template <typename T>
static int64_t first_minimum(const Grid<T>& grid, const Block<T>& block, const T* energy,
                             T smallest, int64_t bound) {
  int64_t index = bound;
  for (int64_t j = 0; j < grid.block; ++j) {
    if (energy[j] != smallest) continue;
    const int64_t n = grid.order ? grid.order[block.first + j] : block.first + j;
    if (n < index) index = n;
    if (!grid.order) break;
  }
  return index;
}

// Moments about the block's centre cost least. They are wrong by a rounding of the block's size,
// which would show where the query lies nearer to a latent than that: there, differences y - s g
// are summed instead. The posterior mean is of the latents' size, and summed as it stands.
template <typename T, int kD>
LEBM_INLINE bool is_near(const Grid<T>& grid, int64_t i, const T* s, T smallest, const Vectors& v) {
  T size = 0;
  for (int d = 0; d < kD; ++d) {
    const T half = s[d] * grid.half[i * kD + d];
    size += half * half;
  }
  return !v.mean && smallest - grid.r_top[i] < size;
}

// At beta = inf: the minima of a block, with their weights. There are few, so no vectors; but if
// they are many, sums of sixteen are added up, which rounds less than one long sum.
template <typename T>
static void add_minima(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T m, T offset,
                       const T* energy, Sums<T>& a, Vectors& v) {
  const int64_t D = grid.D, size = grid.block;
  auto weight = [&](int64_t j) {
    return energy[j] != m  ? 0.0
           : grid.weighted ? __builtin_exp2(double(block.log2_w[j]) - offset)
                           : 1.0;
  };
  for (int64_t start = 0; start < size; start += 16) {
    double mass = 0;
    for (int64_t j = start; j < start + 16; ++j) mass += weight(j);
    if (mass == 0) continue;
    a.sum += mass;
    a.mass += mass;
    for (int64_t d = 0; d < D; ++d) {
      double residual = 0, stretch = 0, mean = 0;
      for (int64_t j = start; j < start + 16; ++j) {
        const double w = weight(j);
        if (w == 0) continue;
        const double g = block.g[d * size + j], difference = q.y[d] - q.s[d] * g;
        residual += w * difference;
        stretch += w * difference * g;
        mean += w * g;
      }
      if (v.residual) v.residual[d] += residual;
      if (v.stretch) v.stretch[d] += stretch;
      if (v.mean) v.mean[d] += mean;
    }
  }
}

// Where the squared size of a block is more than this, a latent out of a query's reach may be so
// large that its p, which is not 0 but 2^lowest, shows in the moments.
template <typename T>
constexpr T kWide = sizeof(T) == 4 ? T(1e30) : T(1e300);

// The block's g without the latents out of reach, in `memory`.
template <typename T>
static const T* without_far(const Block<T>& block, int64_t D, int64_t size, const T* energy,
                            T* memory) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t j = 0; j < size; ++j)
      memory[d * size + j] = energy[j] < kAbsent<T> ? block.g[d * size + j] : T(0);
  return memory;
}

// Adds a block to a query's sums. `energy` holds its energies, of which `smallest` is the least;
// at general D it is overwritten with p.
template <typename T, int kD, Level kLevel>
static void add_block(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T smallest,
                      T* energy, Sums<T>& a, Vectors& v, BlockSums<T>& sums) {
  const int64_t D = kD ? kD : grid.D, size = grid.block;
  sums = {0, 0, 0};
  // kSlope needs the m that F - m was found with.
  if (smallest < T(a.least) && q.mode != kSlope) {
    lower_least(q, grid.weighted, a, v, D, smallest);
    a.index = first_minimum(grid, block, energy, smallest, grid.N);
  } else if (grid.order && smallest == T(a.least)) {
    a.index = first_minimum(grid, block, energy, smallest, a.index);
  }
  const T m = T(a.least);
  if (!(m < kAbsent<T>)) return;  // nothing finite yet
  const bool anchored = grid.weighted && (q.mode == kNormal || q.mode == kCold);
  if (anchored && a.offset < 0) {
    const T largest = q.mode == kCold ? largest_exponent<T, true>(block, size, q.rate, m, energy)
                                      : largest_exponent<T, false>(block, size, q.rate, m, energy);
    // No exponent exceeds 0, and a sum that reaches 2^-60 needs no anchor.
    raise_offset(a, v, D, largest > -60 ? 0.0 : largest);
  }
  const T offset = anchored ? T(a.offset) : T(0);

  if (q.mode == kCold) {
    // Only the minima count: a block without one is done.
    if (smallest == m) add_minima<T>(grid, block, q, m, offset, energy, a, v);
    a.seen += grid.block_weight[block.first / size];
    return;
  }

  // A block without a latent in reach, or one with a p above 2^lowest, which would stand for all of
  // them and show in the moments where they are far away.
  const T reach = q.mode == kNormal ? (smallest - m) * q.rate + offset : T(0);
  const bool matters = smallest < kAbsent<T> && reach < -Exponent<T>::lowest;
  if (!matters && (q.mode == kNormal || q.mode == kSmall)) {
    leave_out(q.mode, grid.block_weight[block.first / size], a);
    return;
  }

  const bool near =
      kD > 0 && kLevel >= kMean && is_near<T, kD>(grid, block.first / size, q.s, smallest, v);
  constexpr int kDims = kD ? kD : 1;
  constexpr bool kGathers = kD > 0 && kLevel >= kMean;
  alignas(64) T reached[kGathers ? kDims * kMostLatents : 1];
  const bool wide = kGathers && !(grid.extent[block.first / size] < kWide<T>);
  const T* all = wide ? without_far(block, kDims, size, energy, reached) : block.g;
  const T* latents = v.mean ? all : block.v;
  const Vec<T> zero = broadcast(T(0));
  Vec<T> first[kDims], second[kDims], firsts[kDims], seconds[kDims];
  for (int d = 0; d < kD; ++d) first[d] = second[d] = firsts[d] = seconds[d] = zero;
  auto moments = [&](int64_t j, Vec<T> p, auto differences) LEBM_INLINE_LAMBDA {
    if constexpr (kD > 0 && kLevel >= kMean) {
      for (int d = 0; d < kD; ++d) {
        if constexpr (differences.value) {
          const Vec<T> g = load(all + d * size + j);
          const Vec<T> pull = mul(p, fnma(broadcast(q.s[d]), g, broadcast(q.y[d])));
          first[d] = add(first[d], pull);
          if constexpr (kLevel == kAllMoments) second[d] = fma(pull, g, second[d]);
        } else {
          const Vec<T> g = load(latents + d * size + j);
          if constexpr (kLevel == kAllMoments) {
            const Vec<T> pg = mul(p, g);
            first[d] = add(first[d], pg);
            second[d] = fma(pg, g, second[d]);
          } else {
            first[d] = fma(p, g, first[d]);
          }
        }
      }
    } else if constexpr (kD == 0 && kLevel >= kMean) {
      store(energy + j, p);
    }
  };
  auto about_centre = [&](int64_t j, Vec<T> p) LEBM_INLINE_LAMBDA { moments(j, p, No{}); };
  auto of_differences = [&](int64_t j, Vec<T> p) LEBM_INLINE_LAMBDA { moments(j, p, Yes{}); };
  auto add_run = [&]() LEBM_INLINE_LAMBDA {
    for (int d = 0; kLevel >= kMean && d < kD; ++d) {
      firsts[d] = add(firsts[d], first[d]);
      seconds[d] = add(seconds[d], second[d]);
      first[d] = second[d] = zero;
    }
  };
  constexpr bool kExcess = kLevel == kAllMoments;
  auto sweep_with = [&](auto&& gather) LEBM_INLINE_LAMBDA {
    switch (q.mode) {
      case kNormal:
        if constexpr (kD == 0 && kLevel < kAllMoments) {
          if (!grid.weighted) {
            sums.sum = sums.mass = sum_powers<T, kLevel == kMean>(size, q.rate, m, energy);
            break;
          }
        }
        sums = grid.weighted ? sweep<T, kNormal, true, kExcess>(block, size, q, m, offset, energy,
                                                                gather, add_run)
                             : sweep<T, kNormal, false, kExcess>(block, size, q, m, offset, energy,
                                                                 gather, add_run);
        break;
      case kSmall:
        sums = sweep<T, kSmall, true, false>(block, size, q, m, offset, energy, gather, add_run);
        break;
      case kHot:
        sums = sweep<T, kHot, true, false>(block, size, q, m, offset, energy, gather, add_run);
        break;
      case kSlope:
        if constexpr (kLevel == kSumOnly) {
          sums = grid.weighted ? sweep<T, kSlope, true, false>(block, size, q, m, offset, energy,
                                                               gather, add_run)
                               : sweep<T, kSlope, false, false>(block, size, q, m, offset, energy,
                                                                gather, add_run);
        }
        break;
      default:
        break;
    }
  };
  if constexpr (kD > 0 && kLevel >= kMean) {
    near ? sweep_with(of_differences) : sweep_with(about_centre);
  } else {
    sweep_with(about_centre);
  }
  a.sum += sums.sum;
  a.mass += sums.mass;
  a.excess += sums.excess;
  a.seen += grid.block_weight[block.first / size];
  if constexpr (kD > 0 && kLevel >= kMean) {
    for (int d = 0; d < kD; ++d) {
      if (near) {
        if (v.residual) v.residual[d] += sum(firsts[d]);
        if (v.stretch) v.stretch[d] += sum(seconds[d]);
      } else {
        add_moments(d, sum(firsts[d]), sum(seconds[d]), sums.mass, v.mean ? T(0) : block.centre[d],
                    q.y[d], q.s[d], v);
      }
    }
  }
}

// How many roundings F may be from the energy of a latent, to count as that: more than any sum has,
// and too few for the square of the difference to show beside the energies' roundings. slope_about
// wants beta times the difference to be small.
constexpr double kGapRoundings = 1024, kMostOfGap = 0.25;

// Lets a query's sums for dF/dbeta be about `energy`, where F cannot be told from it.
template <typename T>
LEBM_INLINE void settle_gap(double least, T energy, Query<T>& q) {
  const T gap = energy - T(least);
  const double apart = __builtin_fabs(double(gap) - double(q.gap));
  const double size = __builtin_fabs(least) + __builtin_fabs(double(q.gap));
  const double near = kGapRoundings * double(Exponent<T>::epsilon) * size;
  if (apart <= near && q.beta * apart <= kMostOfGap) q.gap = gap;
}

// The same for a tile, about the latent at `place`.
template <typename T, int kD>
static void settle_gaps(const Grid<T>& grid, int64_t place, const Sums<T>* sums, int64_t count,
                        Query<T>* queries) {
  const Block<T> block = grid.at(place / grid.block);
  const int64_t j = place % grid.block, lane = j % kLanes<T>;
  alignas(64) T energy[kLanes<T>];
  for (int64_t q = 0; q < count; ++q) {
    if (queries[q].mode != kSlope) continue;
    store(energy, energy_of<T, kD>(block, grid.block, j - lane, queries[q].y, queries[q].s));
    settle_gap(sums[q].least, energy[lane], queries[q]);
  }
}

// A tile of queries against a range of blocks. y and s of the queries lie in consecutive rows.
template <typename T, int kD, Level kLevel>
static void sweep_tile(const Grid<T>& grid, int64_t first_block, int64_t last_block,
                       const Query<T>* queries, int64_t count, T* energy, Sums<T>* sums,
                       Vectors* vectors) {
  for (int64_t i = first_block; i < last_block; ++i) {
    const Block<T> block = grid.at(i);
    for (int64_t q = 0; q < count; ++q) {
      const T smallest = energies<T, kD>(block, grid.block, queries[q].y, queries[q].s, energy);
      BlockSums<T> unused;
      add_block<T, kD, kLevel>(grid, block, queries[q], smallest, energy, sums[q], vectors[q],
                               unused);
    }
  }
}
