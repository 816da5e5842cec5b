// The latents of one grid, packed for the kernels: g [D][block] and v = g - centre, block by block.
//
// Dimensions lie one after the other, so that a vector holds consecutive latents. At D > 4 `rows`
// have v latent by latent as well, as far as they fill vectors. The centre is the
// mean of the block's latents (the middle of their box, where there are series): moments summed in
// v don't cancel when the data lie far from the origin. A latent that does not count (padding, or a
// log-weight of -inf) has g = 0, weight 0 and an infinite energy.
//
// A plain grid has contiguous latents at D <= 4 and neither weights nor energies: it is packed by
// vectors, and its whole blocks share one r, log2_w and w. A long plain grid that meets few queries
// is streamed: writing it down would take longer than the pass. Then only the blocks' bounds are
// kept, and each block is unpacked into scratch memory when its turn comes. If its turn comes only
// once, its bounds are found then too.
#pragma once

#include "../common.h"
#include "../simd/exponential.h"

LEBM_BEGIN_TARGET

template <typename T>
constexpr T kAbsent = Exponent<T>::infinity;

// Above this squared size of a block, differences of a latent out of a query's reach may overflow,
// and infinity times its p of 0 would be NaN.
template <typename T>
constexpr T kHuge = sizeof(T) == 4 ? T(1e30) : T(1e300);

template <typename T>
struct Block {
  int64_t first;    // index of its first latent
  const T* g;       // [D][block]
  const T* v;       // [D][block]
  const T* r;       // [block]
  const T* log2_w;  // [block], log2(w / largest w); -inf for latents that don't count
  const T* w;       // [block], w / largest w
  const T* centre;  // [D]
  const T* rows;    // [block][row_length(D)], v
  const T* square;  // [block], |v|^2 + r; from kProductDimensions on
};

// D is narrow up to here: the kernels then know it at compile time.
constexpr int64_t kNarrow = 4;

// A grid of this many latents is summed by differences alone. A query may be much nearer to one of
// them than any is to their centre, and no other query's error may hide that of its gradient.
constexpr int64_t kFewLatents = 32;

// From here on energies may be taken as products, see product.h.
constexpr int64_t kProductDimensions = 48;

// The dimensions of a latent that fill vectors, at D > 4.
template <typename T>
LEBM_INLINE int64_t whole_vectors(int64_t D) {
  return D <= kNarrow ? 0 : D / kLanes<T> * kLanes<T>;
}

// The distance of rows of whole vectors. Rows whose distance is a multiple of 128 bytes would
// compete for the same sets of the first cache.
template <typename T>
LEBM_INLINE int64_t row_length(int64_t D) {
  const int64_t row = whole_vectors<T>(D);
  return row * sizeof(T) % 128 == 0 && row ? row + kLanes<T> : row;
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
  T *rows, *square;
  double* block_weight;   // [num_blocks]
  T* half;                // [num_blocks][D], the bounding box's longer sides from the centre
  T* extent;              // [num_blocks], their squared length; at D > 4 the largest
                          // |v|^2
  T *r_floor, *r_top;     // [num_blocks], of the latents that count; empty: r_floor > r_top
  bool* whole;            // [num_blocks], whether all its latents count
  int64_t* order;         // [num_blocks][block], the latent at each place; null: as given
  T *box_low, *box_high;  // [D], of the whole grid
  double r_low, r_high;
  double total;  // sum_n (w / largest w)
  bool weighted;
  bool has_nan;       // every result is NaN
  bool has_infinite;  // a latent with infinite energy: it counts in the weights alone
  bool plain;
  bool leaves;        // see layers.h
  T *zeros, *ones;    // [block], r, log2_w and w of the whole blocks of a plain grid
  const T* streamed;  // the latents, if only the last block is written down
  T* scratch;         // [2][D][block], where a streamed block is unpacked: each thread's own
  bool bounded;       // whether streamed blocks have bounds already, see bounded_block

  bool is_streamed(int64_t i) const { return streamed && i < num_blocks - 1; }
  // A streamed block is valid until the next call.
  Block<T> at(int64_t i) const {
    if (is_streamed(i)) {
      unpack(streamed + i * D * block, D, block, centre + i * D, scratch, scratch + D * block);
      return unpacked(i);
    }
    const int64_t slot = streamed ? 0 : i, at_r = slot * block, at_g = D * at_r;
    const int64_t at_rows = row_length<T>(D) * at_r;
    if (plain && whole[i])
      return {i * block, g + at_g, v + at_g, zeros, zeros, ones, centre + i * D, rows, square};
    return {i * block, g + at_g,       v + at_g,       r + at_r,     log2_w + at_r,
            w + at_r,  centre + i * D, rows + at_rows, square + at_r};
  }
  // A streamed block that is in the scratch memory.
  Block<T> unpacked(int64_t i) const {
    return {i * block, scratch, scratch + D * block, zeros, zeros, ones, centre + i * D,
            rows,      square};
  }
  // The latent at a place.
  int64_t place(int64_t at) const { return order ? order[at] : at; }
  bool has_few_latents() const { return N <= kFewLatents; }
  size_t scratch_bytes() const { return streamed ? sizeof(T) * size_t(2 * D * block) : 0; }
};

LEBM_END_TARGET
