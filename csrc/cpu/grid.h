// The latents of one grid, packed for the kernels. Included inside an instruction set's namespace.
//
// Latents lie in blocks of `block`, dimension by dimension, so that a vector holds consecutive
// latents. v = g - centre, the centre being the mean of the block's latents: moments summed in v
// don't cancel when the data lie far from the origin. A latent that must not count (padding, or a
// log-weight of -inf) has g = 0, weight 0 and an energy of kAbsent, which real ones stay below.

template <typename T>
constexpr T kAbsent = sizeof(T) == 4 ? T(8.0e37) : T(4.0e307);

LEBM_INLINE bool is_finite(double x) { return x - x == 0; }

template <typename T>
struct Block {
  int64_t first;    // index of its first latent
  const T* g;       // [D][block]
  const T* v;       // [D][block]; beyond kFewDimensions [block][row_length(D)]
  const T* r;       // [block]
  const T* log2_w;  // [block], log2(w / largest w)
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

template <typename T>
struct Grid {
  int64_t N, D, block, num_blocks;
  T *g, *v, *r, *log2_w, *w, *centre, *low, *high;  // low, high: [num_blocks][D], bounding boxes
  T *across, *square;
  double* block_weight;   // [num_blocks]
  T* half;                // [num_blocks][D], half the sides of the bounding box
  T* extent;              // [num_blocks], squared half diagonal of the bounding box; beyond
                          // kFewDimensions the largest |v|^2
  T *r_floor, *r_top;     // [num_blocks], of the latents that count; empty: r_floor > r_top
  bool* whole;            // [num_blocks], whether all its latents count
  int64_t* order;         // [num_blocks][block], which latent lies there; null: as given
  T *box_low, *box_high;  // [D], of the whole grid
  double r_low, r_high;
  double total;  // sum_n (w / largest w)
  bool weighted;
  bool has_nan;       // every result is NaN
  bool has_infinite;  // a latent with infinite energy: it counts in the weights alone

  Block<T> at(int64_t i) const {
    return {i * block,      g + i * D * block,      v + i * row_length<T>(D) * block,
            r + i * block,  log2_w + i * block,     w + i * block,
            centre + i * D, across + i * D * block, square + i * block};
  }
};

constexpr int64_t kMostLatents = 512;

// 512 latents at low D; fewer where a block would outgrow the caches, and then a multiple of three
// vectors of any instruction set. Powers of two would make the rows of a block meet in the first
// cache's sets.
LEBM_INLINE int64_t block_size(int64_t D) {
  return D <= kFewDimensions ? kMostLatents : D <= 16 ? 384 : D <= 128 ? 192 : 96;
}

template <typename T>
static size_t grid_bytes(int64_t N, int64_t D) {
  const int64_t block = block_size(D), blocks = (N + block - 1) / block;
  const int64_t across = D < kManyDimensions ? 0 : D + 1;
  const int64_t of_latent = D + row_length<T>(D) + across + 3;
  return sizeof(T) * (size_t)(blocks * block * of_latent + blocks * (4 * D + 3) + 2 * D) +
         (sizeof(double) + 1) * (size_t)blocks + 64;
}

template <typename T>
static Grid<T> lay_out(void* memory, int64_t N, int64_t D) {
  Grid<T> grid{};
  grid.N = N;
  grid.D = D;
  grid.block = block_size(D);
  grid.num_blocks = (N + grid.block - 1) / grid.block;
  const int64_t size = grid.num_blocks * grid.block;
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

// What a block finds out about its latents; merged over the blocks by `summarise`.
struct BlockFlags {
  bool has_nan, has_infinite;
  double r_low, r_high;
};

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
  const int64_t block = grid.block, D = grid.D, first = i * block;
  T *g = grid.g + i * D * block, *v = grid.v + i * row_length<T>(D) * block;
  T* r = grid.r + i * block;
  T *log2_w = grid.log2_w + i * block, *w = grid.w + i * block;
  BlockFlags flags{false, false, __builtin_inf(), -__builtin_inf()};
  double weight = 0;
  for (int64_t d = 0; d < D; ++d) {
    grid.low[i * D + d] = kAbsent<T>;
    grid.high[i * D + d] = -kAbsent<T>;
  }
  grid.whole[i] = true;
  for (int64_t j = 0; j < block; ++j) {
    const int64_t n = grid.order && first + j < p.N ? grid.order[first + j] : first + j;
    const double l = n >= p.N        ? -__builtin_inf()
                     : grid.weighted ? double(*p.log_weight.at(b, n)) - largest
                                     : 0.0;
    bool present = l != -__builtin_inf();
    log2_w[j] = present ? T(l * 1.4426950408889634074) : T(-1e30);
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
  grid.extent[i] = 0;
  for (int64_t d = 0; d < D; ++d) {
    const bool empty = grid.low[i * D + d] > grid.high[i * D + d];
    // The mean, not the middle of the box: one latent far away must not make the others' v large.
    double mean = 0, count = 0;
    for (int64_t j = 0; j < block && !empty; ++j) {
      if (r[j] == kAbsent<T>) continue;
      mean += double(g[d * block + j]) - double(grid.low[i * D + d]);
      count += 1;
    }
    const T centre = empty ? T(0) : T(double(grid.low[i * D + d]) + mean / count);
    grid.centre[i * D + d] = centre;
    const T above = grid.high[i * D + d] - centre, below = centre - grid.low[i * D + d];
    const T half = empty ? T(0) : above > below ? above : below;
    grid.half[i * D + d] = half;
    grid.extent[i] += half * half;
    for (int64_t j = 0; j < block && D <= kFewDimensions; ++j)
      v[d * block + j] = g[d * block + j] - centre;
  }
  if (D > kFewDimensions) grid.extent[i] = pack_rows(grid, i, v);
  grid.block_weight[i] = weight;
  grid.r_floor[i] = flags.r_low <= flags.r_high ? T(flags.r_low) : T(1);
  grid.r_top[i] = flags.r_low <= flags.r_high ? T(flags.r_high) : T(0);
  return flags;
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

static size_t order_bytes(int64_t N) {
  return padded(size_t(N) * sizeof(int64_t)) + padded(size_t(N) * sizeof(Place));
}

// The order in which blocks are compact (see order.h), within `memory`.
template <typename T>
static int64_t* sort_latents(const Problem<T>& p, int64_t b, void* memory) {
  auto* order = static_cast<int64_t*>(memory);
  auto* places =
      reinterpret_cast<Place*>(static_cast<char*>(memory) + padded(size_t(p.N) * sizeof(int64_t)));
  for (int64_t n = 0; n < p.N; ++n) {
    places[n].index = uint32_t(n);
    for (int64_t d = 0; d < p.D; ++d) {
      const double x = p.decoded.at(b, n)[d * p.decoded.stride[2]];
      // What is not a number belongs to a latent that does not count.
      places[n].x[d] = is_finite(x) ? float(x) : 0.0f;
    }
  }
  order_in_blocks(places, p.N, int(p.D), kMostLatents);
  for (int64_t n = 0; n < p.N; ++n) order[n] = places[n].index;
  return order;
}

template <typename T>
static void pack_blocks(const Problem<T>& p, int64_t b, double largest, BlockFlags* flags,
                        const Parallel& parallel, Grid<T>& grid) {
  for_each(parallel, grid.num_blocks,
           [&](int64_t i) { flags[i] = pack_block(p, b, largest, grid, i); });
  grid.total = 0;
  grid.r_low = __builtin_inf();
  grid.r_high = -__builtin_inf();
  for (int64_t d = 0; d < p.D; ++d) {
    grid.box_low[d] = kAbsent<T>;
    grid.box_high[d] = -kAbsent<T>;
  }
  // No weight left, or an infinite one: nothing can be normalised.
  grid.has_nan = !is_finite(largest);
  grid.has_infinite = false;
  for (int64_t i = 0; i < grid.num_blocks; ++i) {
    grid.total += grid.block_weight[i];
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
}

// Packs grid b. `flags` is scratch, one a block; `order` scratch for sort_latents, or null where
// the latents must stay as given.
template <typename T>
static Grid<T> pack(const Problem<T>& p, int64_t b, void* memory, BlockFlags* flags, void* order,
                    const Parallel& parallel) {
  Grid<T> grid = lay_out<T>(memory, p.N, p.D);
  grid.weighted = p.log_weight.data != nullptr;
  double largest = grid.weighted ? -__builtin_inf() : 0.0;
  for (int64_t n = 0; grid.weighted && n < p.N; ++n) {
    const double l = *p.log_weight.at(b, n);
    if (l > largest) largest = l;
  }
  pack_blocks(p, b, largest, flags, parallel, grid);
  if (order && !grid.has_nan && is_loose(grid)) {
    grid.order = sort_latents(p, b, order);
    pack_blocks(p, b, largest, flags, parallel, grid);
  }
  return grid;
}
