// The row pass over a whole problem: packing, modes, threads, and what is made of the sums.
// Included inside an instruction set's namespace, after rows.h.

// Everything that a pass over some queries of one grid needs.
template <typename T>
struct Pass {
  const Problem<T>* problem;
  const RowOutputs<T>* out;
  const Grid<T>* grid;
  int64_t b;
  unsigned char* mode;   // [M], a Mode each; what a pass leaves there is swept in the next
  const int64_t* query;  // [count] queries to sweep, or null for all
  int64_t count;
  const Layers<T>* layers;
  Level level;
  double unseen;        // log2 of the share of the sum that may be left out
  bool first;           // the first sweep, which finds m and the moments
  int64_t settle = -1;  // the place of the latent for settle_gap, or -1

  int64_t query_at(int64_t i) const { return query ? query[i] : i; }
};

// A range whose ends bound every energy of a query, from the grid's bounding box.
template <typename T>
static double energy_range(const Grid<T>& grid, const T* y, const T* s) {
  double low = 0, high = 0;
  for (int64_t d = 0; d < grid.D; ++d) {
    const double a = double(y[d]) - double(s[d]) * grid.box_low[d];
    const double b = double(y[d]) - double(s[d]) * grid.box_high[d];
    const double a2 = a * a, b2 = b * b;
    high += a2 > b2 ? a2 : b2;
    if (a * b > 0) low += a2 < b2 ? a2 : b2;
  }
  return (high - low) + (grid.r_high - grid.r_low);
}

template <typename T>
static Mode first_mode(const Grid<T>& grid, const Query<T>& q) {
  if (grid.has_nan || !(q.beta >= 0)) return kSkip;
  for (int64_t d = 0; d < grid.D; ++d)
    if (!is_finite(q.y[d]) || !is_finite(q.s[d])) return kSkip;
  if (is_cold<T>(q.beta)) return kCold;
  if (q.beta == 0) return kHot;
  if (grid.has_infinite) return kNormal;
  const double range = q.beta * energy_range(grid, q.y, q.s);
  // Below rounding, the second-order term -beta Var/2 cannot be seen, and products may underflow.
  if (range < (sizeof(T) == 4 ? 1e-8 : 1e-17)) return kHot;
  // Up to here kSmall serves at once what kNormal would often have to hand on to it.
  return range < 8 ? kSmall : kNormal;
}

// KL = -beta <E - m> - L is taken as it stands where it is more than this share of |L|.
constexpr double kMostCancelled = 0.25;

// dF/dbeta from the sums of w a^2 Phi and of w a Psi, see rows.h. Never above 0.
LEBM_INLINE double slope_about(double beta, double second, double first) {
  const double rest = -beta * first;
  if (!(rest > -0.5 && rest < 0.5)) return -second;
  const double delta = beta == 0 ? first : -__builtin_log1p(rest) / beta;
  const double phi = least(phi_near<double>(broadcast(-beta * delta)));
  const double relative = second - delta * delta * phi;
  return relative > 0 ? -__builtin_exp(beta * delta) * relative : relative <= 0 ? 0.0 : relative;
}

// Whether a query that is not summed is so far away that its energies are infinite, rather than no
// number.
template <typename T>
static bool is_out_of_reach(const Grid<T>& grid, const Query<T>& q) {
  bool is_nan = grid.has_nan || !(q.beta >= 0);
  for (int64_t d = 0; d < grid.D; ++d) is_nan |= q.y[d] != q.y[d] || q.s[d] != q.s[d];
  return !is_nan;
}

// Writes a query's results from its sums; sets the mode of its next sweep.
template <typename T>
static void finish(const Pass<T>& pass, int64_t m, const Query<T>& q, const Sums<T>& a,
                   const Vectors& v) {
  const int64_t D = pass.grid->D, at = pass.b * pass.problem->M + m;
  const RowOutputs<T>& out = *pass.out;
  double* state = out.state + 3 * at;
  unsigned char& mode = pass.mode[m];
  if (q.mode == kSlope) {
    out.slope_beta[at] =
        T(slope_about(q.beta, a.sum / pass.grid->total, a.mass / pass.grid->total));
    mode = kSkip;
    return;
  }
  auto set_all = [&](T value) {
    for (int64_t d = 0; d < D; ++d) {
      if (out.slope_y) out.slope_y[at * D + d] = value;
      if (out.slope_scale) out.slope_scale[at * D + d] = value;
      if (out.mean) out.mean[at * D + d] = value;
    }
    if (out.slope_beta) out.slope_beta[at] = value;
  };
  if (q.mode == kSkip || !(a.least < double(kAbsent<T>))) {
    // Not a number somewhere, or every energy is infinite or overflows.
    const bool far = q.mode != kSkip || is_out_of_reach(*pass.grid, q);
    const T value = far ? T(__builtin_inf()) : T(__builtin_nan(""));
    out.free_energy[at] = value;
    state[0] = value;
    state[1] = state[2] = 0;
    if (out.index) out.index[at] = 0;
    set_all(T(__builtin_nan("")));
    mode = kSkip;
    return;
  }
  const double total = a.sum / pass.grid->total;
  double L = 0, gap = 0;
  switch (q.mode) {
    case kNormal:
      L = __builtin_log(total);
      if (pass.grid->weighted) L += a.offset * kLn2;
      gap = -L / q.beta;
      break;
    case kSmall:
      L = total > -0.5 ? __builtin_log1p(total) : __builtin_log(a.mass / pass.grid->total);
      gap = -L / q.beta;
      break;
    case kHot:
      gap = pass.grid->has_infinite ? __builtin_inf() : -total;
      break;
    default:
      L = __builtin_log(total);
      if (pass.grid->weighted) L += a.offset * kLn2;
      break;
  }
  out.free_energy[at] = T(a.least + gap);
  state[0] = a.least;
  state[1] = L;
  state[2] = gap;
  if (q.mode == kCold && pass.grid->weighted) {
    // See problem.h. Where one latent has the minimum, this makes its p exactly 1.
    const double bits = __builtin_log2(a.sum);
    state[2] = bits + (a.offset - __builtin_rint(a.offset));
  }
  mode = kSkip;
  // A sum's rounding is one of F by 1 / beta, which shows only in an F that is not larger.
  const double size = q.beta * (a.least + gap);
  if (q.mode == kNormal && L > kSmallL && size < 1 && size > -1) mode = kSmall;
  if ((q.mode == kSmall || q.mode == kHot) && out.slope_beta) {
    // The first sweep's KL stands where little of it cancelled.
    const double relative_entropy = pass.first ? 0 : -double(out.slope_beta[at]) * q.beta * q.beta;
    if (!(relative_entropy > kMostCancelled * (L < 0 ? -L : L))) mode = kSlope;
  }
  if (!pass.first) return;
  if (out.index) out.index[at] = a.index;
  if (out.slope_beta) {
    const double entropy = kLn2 * a.excess / a.sum - L;
    out.slope_beta[at] =
        q.mode == kNormal ? T(-(entropy > 0 ? entropy : 0) / q.beta / q.beta) : T(0);
  }
  for (int64_t d = 0; d < D; ++d) {
    if (out.slope_y) out.slope_y[at * D + d] = T(2 * v.residual[d] / a.mass.value);
    if (out.slope_scale) out.slope_scale[at * D + d] = T(-2 * v.stretch[d] / a.mass.value);
    if (out.mean) out.mean[at * D + d] = T(v.mean[d] / a.mass.value);
  }
}

LEBM_INLINE int64_t tile_size(int64_t D) { return D <= kFewDimensions ? kTile : kMany; }

// Scratch of one tile of queries.
template <typename T>
struct Tile {
  T *y, *s, *energy;
  Query<T>* queries;
  Sums<T>* sums;
  Vectors* vectors;
  double* moments;
  void* block;  // where streamed blocks are unpacked

  static int64_t energies(int64_t D, int64_t block) {
    return D <= kFewDimensions ? block : TiledScratch<T>::count(D, block);
  }
  static size_t bytes(int64_t D, int64_t block) {
    const int64_t tile = tile_size(D);
    return sizeof(T) * size_t(2 * tile * D + energies(D, block)) +
           size_t(tile) * (sizeof(Query<T>) + sizeof(Sums<T>) + sizeof(Vectors) +
                           sizeof(double) * 3 * size_t(D)) +
           64;
  }
  Tile(void* memory, int64_t D, int64_t size) {
    const int64_t tile = tile_size(D);
    sums = static_cast<Sums<T>*>(memory);
    vectors = reinterpret_cast<Vectors*>(sums + tile);
    queries = reinterpret_cast<Query<T>*>(vectors + tile);
    moments = reinterpret_cast<double*>(queries + tile);
    y = reinterpret_cast<T*>(moments + 3 * tile * D);
    s = y + tile * D;
    energy = s + tile * D;
    block = energy + energies(D, size);
  }
};

template <typename T>
static void load_tile(const Pass<T>& pass, int64_t first, int64_t count, Tile<T>& tile) {
  const Problem<T>& p = *pass.problem;
  const int64_t D = p.D, padded = in_groups(count);
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t m = pass.query_at(first + (i < count ? i : count - 1));
    for (int64_t d = 0; d < D; ++d) {
      tile.y[i * D + d] = p.y.at(pass.b, m)[d * p.y.stride[2]];
      tile.s[i * D + d] = p.scale.data ? p.scale.at(pass.b, m)[d * p.scale.stride[2]] : T(1);
    }
    if (i >= count) continue;
    Query<T>& q = tile.queries[i];
    q.y = tile.y + i * D;
    q.s = tile.s + i * D;
    q.beta = *p.beta.at(pass.b, m);
    q.rate = T(q.beta * kLog2E);
    q.mode = pass.first ? first_mode(*pass.grid, q) : Mode(pass.mode[m]);
    const double* state = pass.out->state + 3 * (pass.b * p.M + m);
    q.gap = pass.first ? T(0) : T(state[2]);
    q.inverse = q.beta == 0 ? T(0) : T(1 / q.beta);
    q.stretch = D <= kFewDimensions ? T(0) : largest_square(q.s, D);
    double* moments = tile.moments + 3 * i * D;
    const bool sum_only = pass.level == kSumOnly;
    tile.vectors[i] = {sum_only || !pass.out->slope_y ? nullptr : moments,
                       sum_only || !pass.out->slope_scale ? nullptr : moments + D,
                       sum_only || !pass.out->mean ? nullptr : moments + 2 * D};
    clear(tile.sums[i], tile.vectors[i], D, pass.first ? __builtin_inf() : state[0]);
  }
}

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
