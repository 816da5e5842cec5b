// The latents of one grid, packed for the kernels. Included inside an instruction set's namespace.
//
// Latents lie in blocks of `block`, dimension by dimension, so that a vector holds consecutive
// latents. v = g - centre, the centre being the mean of the block's latents (the middle of their
// box, where there are series): moments summed in v don't cancel when the data lie far from the
// origin. A latent that must not count (padding, or a log-weight of -inf) has g = 0, weight 0 and
// an energy of kAbsent, which real ones stay below.
//
// A plain grid is one of contiguous latents at low D without weights or energies: it is packed by
// vectors, and its whole blocks share one r, log2_w and w. Where a plain grid is long and meets few
// queries, it is streamed: writing it down would take longer than the sweep. Then only what
// describes the blocks is kept, and a block is unpacked, into a scratch of the sweep's, when its
// turn comes; where it comes once, its bounds are taken then too.

template <typename T>
constexpr T kAbsent = sizeof(T) == 4 ? T(8.0e37) : T(4.0e307);

// Near the largest number.
template <typename T>
constexpr double kMost = sizeof(T) == 4 ? 3.4e38 : 1.7e308;

LEBM_INLINE bool is_finite(double x) { return x - x == 0; }

template <typename T>
struct Block {
  int64_t first;    // index of its first latent
  const T* g;       // [D][block]
  const T* v;       // [D][block]; beyond kFewDimensions [block][row_length(D)]
  const T* r;       // [block]
  const T* log2_w;  // [block], log2(w / largest w); -inf for what must not count
  const T* w;       // [block], w / largest w
  const T* centre;  // [D]
  const T* across;  // [D][block], v; from kManyDimensions on
  const T* square;  // [block], |v|^2 + r; likewise
};

// Up to here the kernels know D when they are compiled.
constexpr int64_t kFewDimensions = 4;

// From here on energies may be taken as products, see product.h.
constexpr int64_t kManyDimensions = 48;

// Numbers in a row of dimensions: whole vectors, where rows are what is read. Rows a multiple of
// 128 bytes apart would meet in the first cache's sets.
template <typename T>
LEBM_INLINE int64_t row_length(int64_t D) {
  if (D <= kFewDimensions) return D;
  const int64_t row = (D + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  return row * sizeof(T) % 128 == 0 ? row + kLanes<T> : row;
}

template <typename T, int kD>
static void transpose(const T* __restrict x, int64_t block, T* __restrict g) {
  for (int64_t j = 0; j < block; ++j)
    for (int d = 0; d < kD; ++d) g[d * block + j] = x[j * kD + d];
}

// x [block][D] to g [D][block], D <= 4.
template <typename T>
static void transpose(const T* x, int64_t D, int64_t block, T* g) {
  switch (D) {
    case 1:
      return transpose<T, 1>(x, block, g);
    case 2:
      return transpose<T, 2>(x, block, g);
    case 3:
      return transpose<T, 3>(x, block, g);
    default:
      return transpose<T, 4>(x, block, g);
  }
}

// x [block][D] to g and v = g - centre.
template <typename T>
static void unpack(const T* x, int64_t D, int64_t block, const T* centre, T* g, T* v) {
  transpose(x, D, block, g);
  for (int64_t d = 0; d < D; ++d) {
    const Vec<T> of_block = broadcast(centre[d]);
    for (int64_t j = d * block; j < (d + 1) * block; j += kLanes<T>)
      store(v + j, sub(load(g + j), of_block));
  }
}

template <typename T>
struct Grid {
  int64_t N, D, block, num_blocks;
  T *g, *v, *r, *log2_w, *w, *centre, *low, *high;  // low, high: [num_blocks][D], bounding boxes
  T *across, *square;
  double* block_weight;   // [num_blocks]
  T* half;                // [num_blocks][D], the bounding box's longer sides from the centre
  T* extent;              // [num_blocks], their squared length; beyond kFewDimensions the largest
                          // |v|^2
  T *r_floor, *r_top;     // [num_blocks], of the latents that count; empty: r_floor > r_top
  bool* whole;            // [num_blocks], whether all its latents count
  int64_t* order;         // [num_blocks][block], which latent lies there; null: as given
  T *box_low, *box_high;  // [D], of the whole grid
  double r_low, r_high;
  double total;  // sum_n (w / largest w)
  bool weighted;
  bool has_nan;       // every result is NaN
  bool has_infinite;  // a latent with infinite energy: it counts in the weights alone
  bool plain;
  bool leaves;        // see layers.h
  T *zeros, *ones;    // [block], what whole blocks of a plain grid have for r, log2_w and w
  const T* streamed;  // the latents, if they are not written down, but for the last block
  T* scratch;         // [2][D][block], where a streamed block is unpacked: each thread's own
  bool bounded;       // whether streamed blocks have bounds already, see bounded_block

  bool is_streamed(int64_t i) const { return streamed && i < num_blocks - 1; }
  // A streamed block holds until the next.
  Block<T> at(int64_t i) const {
    if (is_streamed(i)) {
      unpack(streamed + i * D * block, D, block, centre + i * D, scratch, scratch + D * block);
      return unpacked(i);
    }
    const int64_t slot = streamed ? 0 : i, at_r = slot * block, at_g = D * at_r;
    const int64_t at_v = row_length<T>(D) * at_r;
    if (plain && whole[i])
      return {i * block, g + at_g, v + at_v, zeros, zeros, ones, centre + i * D, across, square};
    return {i * block, g + at_g,       v + at_v,      r + at_r,     log2_w + at_r,
            w + at_r,  centre + i * D, across + at_g, square + at_r};
  }
  // A streamed block that lies in the scratch.
  Block<T> unpacked(int64_t i) const {
    return {i * block, scratch, scratch + D * block, zeros, zeros, ones, centre + i * D,
            across,    square};
  }
  size_t scratch_bytes() const { return streamed ? sizeof(T) * size_t(2 * D * block) : 0; }
};

constexpr int64_t kMostLatents = 512, kLeaf = 128;

// Queries below this don't repay series (see layers.h).
constexpr int64_t kSeriesQueries = 512;

// Whether a grid's queries share what series depend on, and repay them: it is then packed in
// leaves.
template <typename T>
static bool has_leaves(const Problem<T>& p) {
  return p.D <= 2 && p.M >= kSeriesQueries && p.N > kLeaf && !p.log_weight.data &&
         p.beta.stride[1] == 0 && (!p.scale.data || p.scale.stride[1] == 0);
}

// A multiple of what every instruction set's loops take at a time: two of its vectors.
constexpr int64_t kSmallestBlock = 32;

// 512 latents at low D; fewer where a block would outgrow the caches, or is not filled. Beyond
// kFewDimensions a multiple of two and of three vectors of any instruction set, and no power of
// two, at which the rows of a block would meet in the first cache's sets.
template <typename T>
static int64_t block_size(const Problem<T>& p) {
  if (has_leaves(p)) return kLeaf;
  const bool few = p.D <= kFewDimensions;
  const int64_t most = few ? kMostLatents : p.D <= 16 ? 384 : p.D <= 128 ? 192 : 96;
  const int64_t unit = few ? kSmallestBlock : 96, filled = (p.N + unit - 1) / unit * unit;
  return filled < most ? filled : most;
}

template <typename T>
static bool is_plain(const Problem<T>& p) {
  return p.D <= kFewDimensions && !p.log_weight.data && !p.latent_energy.data &&
         (p.D == 1 || p.decoded.stride[2] == 1) && p.decoded.stride[1] == p.D;
}

// Whether the grid is streamed: where it would leave the caches, and the queries are so few that
// unpacking it for each of their tiles does not show.
template <typename T>
static bool streams(const Problem<T>& p) {
  return is_plain(p) && p.M <= 64 && p.N >= 8 * kMostLatents;
}

template <typename T>
static int64_t num_blocks(const Problem<T>& p) {
  return (p.N + block_size(p) - 1) / block_size(p);
}

template <typename T>
static size_t grid_bytes(const Problem<T>& p, bool streamed) {
  const int64_t D = p.D, block = block_size(p), blocks = num_blocks(p);
  const int64_t size = (streamed ? 1 : blocks) * block;
  const int64_t across = D < kManyDimensions ? 0 : D + 1;
  const int64_t of_latent = D + row_length<T>(D) + across + 3;
  return sizeof(T) * (size_t)(size * of_latent + 2 * block + blocks * (4 * D + 3) + 2 * D) +
         (sizeof(double) + 1) * (size_t)blocks + 64;
}

template <typename T>
static Grid<T> lay_out(const Problem<T>& p, void* memory, bool streamed) {
  const int64_t D = p.D;
  Grid<T> grid{};
  grid.N = p.N;
  grid.D = D;
  grid.block = block_size(p);
  grid.num_blocks = num_blocks(p);
  const int64_t size = (streamed ? 1 : grid.num_blocks) * grid.block;
  grid.block_weight = static_cast<double*>(memory);
  // Vectors that straddle cache lines cost twice.
  const size_t address = reinterpret_cast<size_t>(grid.block_weight + grid.num_blocks);
  T* next = reinterpret_cast<T*>(padded(address));
  auto take = [&](int64_t count) {
    T* taken = next;
    next += count;
    return taken;
  };
  grid.g = take(size * D);
  grid.v = take(size * row_length<T>(D));
  grid.across = take(D < kManyDimensions ? 0 : size * D);
  grid.square = take(D < kManyDimensions ? 0 : size);
  grid.r = take(size);
  grid.log2_w = take(size);
  grid.w = take(size);
  grid.zeros = take(grid.block);
  grid.ones = take(grid.block);
  grid.centre = take(grid.num_blocks * D);
  grid.low = take(grid.num_blocks * D);
  grid.high = take(grid.num_blocks * D);
  grid.half = take(grid.num_blocks * D);
  grid.extent = take(grid.num_blocks);
  grid.r_floor = take(grid.num_blocks);
  grid.r_top = take(grid.num_blocks);
  grid.box_low = take(D);
  grid.box_high = take(D);
  grid.whole = reinterpret_cast<bool*>(next);
  return grid;
}

template <typename T>
LEBM_INLINE T middle_of(T low, T high) {
  return T(0.5 * (double(low) + double(high)));
}

// The side of a bounding box from a point in it, at its longest.
template <typename T>
LEBM_INLINE T half_of(T centre, T low, T high) {
  const T above = high - centre, below = centre - low;
  return above > below ? above : below;
}

// What a block finds out about its latents; merged over the blocks by pack_blocks.
struct BlockFlags {
  bool has_nan, has_infinite;
  double r_low, r_high;
};

// Sets what describes a block in dimension d, in the order of d. `mean` is that of its latents.
template <typename T>
static void set_sides(const Grid<T>& grid, int64_t i, int64_t d, T mean, T low, T high) {
  // Series want the least |v|; sums of pairs not to have all v large for one latent far away.
  const T centre = grid.leaves ? middle_of(low, high) : mean;
  const T half = half_of(centre, low, high);
  grid.centre[i * grid.D + d] = centre;
  grid.half[i * grid.D + d] = half;
  grid.extent[i] = (d ? grid.extent[i] : T(0)) + half * half;
}

// Packs a block of a plain grid all of whose latents count, or fails: where some don't, and where
// some are so far apart that a sum of them could overflow. `g` and `v` may be the block's place in
// the grid or scratch.
template <typename T>
static bool pack_whole_block(const T* x, const Grid<T>& grid, int64_t i, T* g, T* v) {
  const int64_t block = grid.block, D = grid.D;
  transpose(x, D, block, g);
  for (int64_t d = 0; d < D; ++d) {
    const Vec<T> first = broadcast(x[d]);
    Vec<T> low = first, minus_high = sub(broadcast(T(0)), first);
    Vec<T> from_first = broadcast(T(0)), not_finite = broadcast(T(0));
    for (int64_t j = d * block; j < (d + 1) * block; j += kLanes<T>) {
      const Vec<T> y = load(g + j);
      low = min(low, y);
      minus_high = min(minus_high, sub(broadcast(T(0)), y));
      from_first = add(from_first, sub(y, first));
      not_finite = fma(y, broadcast(T(0)), not_finite);
    }
    const T lowest = least(low), highest = -least(minus_high);
    if (sum(not_finite) != T(0) || !(highest - lowest < T(1e30))) return false;
    grid.low[i * D + d] = lowest;
    grid.high[i * D + d] = highest;
    set_sides(grid, i, d, x[d] + sum(from_first) / T(block), lowest, highest);
    const Vec<T> of_block = broadcast(grid.centre[i * D + d]);
    for (int64_t j = d * block; j < (d + 1) * block; j += kLanes<T>)
      store(v + j, sub(load(g + j), of_block));
  }
  grid.whole[i] = true;
  grid.block_weight[i] = double(block);
  grid.r_floor[i] = grid.r_top[i] = T(0);
  return true;
}

// Block i, streamed or not, bounded if it was not yet. Fails as pack_whole_block does.
template <typename T>
static bool bounded_block(const Grid<T>& grid, int64_t i, Block<T>& block) {
  if (grid.bounded || !grid.is_streamed(i)) {
    block = grid.at(i);
    return true;
  }
  const int64_t size = grid.D * grid.block;
  block = grid.unpacked(i);
  return pack_whole_block(grid.streamed + i * size, grid, i, grid.scratch, grid.scratch + size);
}

// Beyond kFewDimensions v lies latent by latent: where it is read, the dimensions of a latent are
// what is taken side by side. Returns the largest |v|^2.
template <typename T>
static T pack_rows(const Grid<T>& grid, int64_t i, T* v) {
  const int64_t block = grid.block, D = grid.D, row = row_length<T>(D);
  const T *g = grid.g + i * D * block, *centre = grid.centre + i * D, *r = grid.r + i * block;
  const bool many = D >= kManyDimensions;
  double square[kMostLatents], part[kMostLatents];
  fill(square, block, 0.0);
  fill(part, block, 0.0);
  for (int64_t d = 0; d < D; ++d) {
    T* across = many ? grid.across + (i * D + d) * block : nullptr;
    for (int64_t j = 0; j < block; ++j) {
      const T x = r[j] == kAbsent<T> ? T(0) : g[d * block + j] - centre[d];
      v[j * row + d] = x;
      if (many) across[j] = x;
      part[j] += double(x) * x;
    }
    // Sums of sixteen are added up, which rounds less than one long sum.
    if (d % 16 != 15 && d != D - 1) continue;
    for (int64_t j = 0; j < block; ++j) square[j] += part[j];
    fill(part, block, 0.0);
  }
  T largest = 0;
  for (int64_t j = 0; j < block; ++j) {
    for (int64_t d = D; d < row; ++d) v[j * row + d] = T(0);
    if (many) grid.square[i * block + j] = T(square[j] + double(r[j]));
    if (square[j] > largest) largest = T(square[j]);
  }
  return largest;
}

template <typename T>
static BlockFlags pack_block(const Problem<T>& p, int64_t b, double largest, const Grid<T>& grid,
                             int64_t i) {
  const int64_t block = grid.block, D = grid.D, first = i * block, slot = grid.streamed ? 0 : i;
  T *g = grid.g + slot * D * block, *v = grid.v + slot * row_length<T>(D) * block;
  T* r = grid.r + slot * block;
  T *log2_w = grid.log2_w + slot * block, *w = grid.w + slot * block;
  BlockFlags flags{false, false, __builtin_inf(), -__builtin_inf()};
  Total<T> weight{};
  for (int64_t d = 0; d < D; ++d) {
    grid.low[i * D + d] = kAbsent<T>;
    grid.high[i * D + d] = -kAbsent<T>;
  }
  grid.whole[i] = true;
  for (int64_t j = 0; j < block; ++j) {
    const int64_t n = grid.order && first + j < p.N ? grid.order[first + j] : first + j;
    const double log_weight = n >= p.N        ? -__builtin_inf()
                              : grid.weighted ? double(*p.log_weight.at(b, n))
                                              : 0.0;
    const double l = log_weight - largest;
    bool present = log_weight != -__builtin_inf();
    // The difference of two log-weights may be beyond T.
    const double bits = l * 1.4426950408889634074;
    log2_w[j] = T(bits < -kMost<T> ? -kMost<T> : bits);
    w[j] = present ? (l == 0 ? T(1) : T(__builtin_exp(l))) : T(0);
    r[j] = present && p.latent_energy.data ? *p.latent_energy.at(b, n) : T(0);
    weight += w[j];
    if (present) {
      flags.has_nan |= l != l || r[j] != r[j] || r[j] == -__builtin_inf();
      bool infinite = r[j] == __builtin_inf();
      for (int64_t d = 0; d < D; ++d) {
        const double x = p.decoded.at(b, n)[d * p.decoded.stride[2]];
        flags.has_nan |= x != x;
        infinite |= x == __builtin_inf() || x == -__builtin_inf();
      }
      flags.has_infinite |= infinite;
      present = !infinite;
    }
    if (!present) {
      r[j] = kAbsent<T>;
      log2_w[j] = -Exponent<T>::infinity;
      grid.whole[i] = false;
    } else {
      flags.r_low = r[j] < flags.r_low ? r[j] : flags.r_low;
      flags.r_high = r[j] > flags.r_high ? r[j] : flags.r_high;
    }
    for (int64_t d = 0; d < D; ++d) {
      const T x = present ? p.decoded.at(b, n)[d * p.decoded.stride[2]] : T(0);
      g[d * block + j] = x;
      if (present && x < grid.low[i * D + d]) grid.low[i * D + d] = x;
      if (present && x > grid.high[i * D + d]) grid.high[i * D + d] = x;
    }
  }
  for (int64_t d = 0; d < D; ++d) {
    const T low = grid.low[i * D + d], high = grid.high[i * D + d];
    double mean = 0, count = 0;
    for (int64_t j = 0; j < block && !grid.leaves && low <= high; ++j) {
      if (r[j] == kAbsent<T>) continue;
      mean += double(g[d * block + j]) - double(low);
      count += 1;
    }
    const T about = count ? T(double(low) + mean / count) : T(0);
    low <= high ? set_sides(grid, i, d, about, low, high) : set_sides(grid, i, d, T(0), T(0), T(0));
    const T centre = grid.centre[i * D + d];
    for (int64_t j = 0; j < block && D <= kFewDimensions; ++j)
      v[d * block + j] = g[d * block + j] - centre;
  }
  if (D > kFewDimensions) grid.extent[i] = pack_rows(grid, i, v);
  grid.block_weight[i] = weight;
  grid.r_floor[i] = flags.r_low <= flags.r_high ? T(flags.r_low) : T(1);
  grid.r_top[i] = flags.r_low <= flags.r_high ? T(flags.r_high) : T(0);
  return flags;
}

// The place of the latent of most weight, the first of equals, among those of finite energy; -1
// where there is none, and without log-weights.
template <typename T>
static int64_t heaviest(const Grid<T>& grid) {
  int64_t place = -1;
  T most = T(0);
  for (int64_t i = 0; grid.weighted && i < grid.num_blocks; ++i) {
    const Block<T> block = grid.at(i);
    for (int64_t j = 0; j < grid.block; ++j) {
      if (block.r[j] == kAbsent<T> || !(block.w[j] > most)) continue;
      most = block.w[j];
      place = i * grid.block + j;
    }
  }
  return place;
}

// Whether the blocks are much larger than they would be, were neighbours in space neighbours in
// memory: a grid's box cut in num_blocks cubes has sides num_blocks^(1/D) times smaller.
template <typename T>
static bool is_loose(const Grid<T>& grid) {
  double mean = 0, box = 0;
  for (int64_t i = 0; i < grid.num_blocks; ++i) mean += grid.extent[i] / double(grid.num_blocks);
  for (int64_t d = 0; d < grid.D; ++d) {
    const double side = 0.5 * (double(grid.box_high[d]) - double(grid.box_low[d]));
    box += side * side;
  }
  return mean > 4 * box * __builtin_pow(double(grid.num_blocks), -2.0 / double(grid.D));
}

// Sorting pays where the latents meet many queries.
template <typename T>
static bool sorts(const Problem<T>& p) {
  return p.D <= 3 && p.M >= 256 && p.N > 2 * kMostLatents && p.N < int64_t(1) << 32 &&
         !p.log_weight.data;
}

static size_t order_bytes(int64_t count) {
  return padded(size_t(count) * sizeof(int64_t)) + padded(size_t(count) * sizeof(Place));
}

// The order in which `count` points of grid b are compact, `block` by block (see order.h), within
// `memory`.
template <typename T>
static int64_t* sort_by_place(const View<T>& points, int64_t b, int64_t count, int64_t D,
                              int64_t block, void* memory, const Parallel& parallel) {
  auto* order = static_cast<int64_t*>(memory);
  auto* places = reinterpret_cast<Place*>(static_cast<char*>(memory) +
                                          padded(size_t(count) * sizeof(int64_t)));
  for (int64_t i = 0; i < count; ++i) {
    places[i].index = uint32_t(i);
    for (int64_t d = 0; d < D; ++d) {
      const double x = points.at(b, i)[d * points.stride[2]];
      // What is not a number belongs to a point that does not count.
      places[i].x[d] = is_finite(x) ? float(x) : 0.0f;
    }
  }
  order_in_blocks(places, count, int(D), block, parallel);
  for (int64_t i = 0; i < count; ++i) order[i] = places[i].index;
  return order;
}

template <typename T>
static void pack_blocks(const Problem<T>& p, int64_t b, double largest, BlockFlags* flags,
                        const Parallel& parallel, Grid<T>& grid) {
  const T* latents = p.decoded.at(b, 0);
  const int64_t size = grid.D * grid.block;
  auto pack_one = [&](int64_t i) {
    const bool full = grid.plain && (i + 1) * grid.block <= grid.N;
    if (full && pack_whole_block(latents + i * size, grid, i, grid.g + i * size, grid.v + i * size))
      flags[i] = {false, false, 0.0, 0.0};
    else
      flags[i] = pack_block(p, b, largest, grid, i);
  };
  if (grid.streamed) {
    // The last block is written down; another that is not whole makes the caller do without
    // streams.
    const int64_t last = grid.num_blocks - 1;
    const int64_t most = grid.bounded ? 8 * parallel.threads : 0;
    const int64_t shares = last < most ? last : most;
    for_each(parallel, shares, [&](int64_t share) {
      Scratch scratch(grid.scratch_bytes());
      auto* unpacked = static_cast<T*>(scratch.get());
      for (int64_t i = last * share / shares; i < last * (share + 1) / shares; ++i) {
        const bool whole = pack_whole_block(latents + i * size, grid, i, unpacked, unpacked + size);
        flags[i] = {false, !whole, 0.0, 0.0};
      }
    });
    flags[last] = pack_block(p, b, largest, grid, last);
  } else {
    for_each(parallel, grid.num_blocks, pack_one);
  }
  // Streamed blocks without bounds are whole, or the grid serves for nothing.
  const int64_t unbounded = grid.bounded ? 0 : grid.num_blocks - 1;
  Total<T> total{};
  total += double(unbounded * grid.block);
  grid.r_low = __builtin_inf();
  grid.r_high = -__builtin_inf();
  for (int64_t d = 0; d < p.D; ++d) {
    grid.box_low[d] = kAbsent<T>;
    grid.box_high[d] = -kAbsent<T>;
  }
  // No weight left, or an infinite one: nothing can be normalised.
  grid.has_nan = !is_finite(largest);
  grid.has_infinite = false;
  for (int64_t i = unbounded; i < grid.num_blocks; ++i) {
    total += grid.block_weight[i];
    grid.has_nan |= flags[i].has_nan;
    grid.has_infinite |= flags[i].has_infinite;
    grid.r_low = flags[i].r_low < grid.r_low ? flags[i].r_low : grid.r_low;
    grid.r_high = flags[i].r_high > grid.r_high ? flags[i].r_high : grid.r_high;
    for (int64_t d = 0; d < p.D; ++d) {
      const T low = grid.low[i * p.D + d], high = grid.high[i * p.D + d];
      grid.box_low[d] = low < grid.box_low[d] ? low : grid.box_low[d];
      grid.box_high[d] = high > grid.box_high[d] ? high : grid.box_high[d];
    }
  }
  grid.total = total;
}

// Packs grid b, see Packed. Without `bounded`, streamed blocks have bounds only once they were had
// of bounded_block, and the grid has none.
template <typename T>
static Grid<T> pack(const Problem<T>& p, int64_t b, void* memory, BlockFlags* flags, void* order,
                    const Parallel& parallel, bool streamed, bool bounded = true) {
  Grid<T> grid = lay_out(p, memory, streamed);
  grid.bounded = bounded;
  grid.plain = is_plain(p);
  grid.leaves = has_leaves(p);
  grid.streamed = streamed ? p.decoded.at(b, 0) : nullptr;
  fill(grid.zeros, grid.block, T(0));
  fill(grid.ones, grid.block, T(1));
  grid.weighted = p.log_weight.data != nullptr;
  double largest = grid.weighted ? -__builtin_inf() : 0.0;
  for (int64_t n = 0; grid.weighted && n < p.N; ++n) {
    const double l = *p.log_weight.at(b, n);
    if (l > largest) largest = l;
  }
  pack_blocks(p, b, largest, flags, parallel, grid);
  if (order && !grid.has_nan && is_loose(grid)) {
    grid.order = sort_by_place(p.decoded, b, p.N, p.D, grid.block, order, parallel);
    grid.plain = false;
    pack_blocks(p, b, largest, flags, parallel, grid);
  }
  return grid;
}

// Grid b, packed within `memory`. `flags` is scratch, one a block; `order` scratch for
// sort_by_place, or null where the latents must stay as given. A streamed grid that turns out to
// have infinite latents, or ones so far apart that they are treated as such, serves for nothing and
// is packed again, in memory of its own.
template <typename T>
struct Packed {
  Grid<T> grid;
  Scratch written;

  Packed(const Problem<T>& p, int64_t b, void* memory, BlockFlags* flags, void* order,
         const Parallel& parallel)
      : grid(pack(p, b, memory, flags, order, parallel, streams(p))),
        written(serves() ? 0 : grid_bytes(p, false)) {
    if (!serves()) grid = pack(p, b, written.get(), flags, nullptr, parallel, false);
  }

 private:
  bool serves() const { return !(grid.streamed && grid.has_infinite); }
};
