// E[n] = r[n] + sum_d (y_d - s_d g[n,d])^2 for the latents of a block. The row and the column pass
// share this arithmetic to the bit, so that at beta = inf both find the same minima.
// Included inside an instruction set's namespace.

// One vector of energies at j, kD a constant.
template <typename T, int kD>
LEBM_INLINE Vec<T> energy_of(const Block<T>& block, int64_t stride, int64_t j, const T* y,
                             const T* s) {
  Vec<T> e = load(block.r + j);
  for (int d = 0; d < kD; ++d) {
    Vec<T> difference = fnma(broadcast(s[d]), load(block.g + d * stride + j), broadcast(y[d]));
    e = fma(difference, difference, e);
  }
  return e;
}

// Fills out[block]; returns the least.
template <typename T, int kD>
static LEBM_INLINE T energies(const Block<T>& block, int64_t size, const T* y, const T* s, T* out) {
  Vec<T> smallest = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> e = energy_of<T, kD>(block, size, j, y, s);
    store(out + j, e);
    smallest = min(smallest, e);
  }
  return least(smallest);
}

// Any D: queries in fours, so that a latent's load serves four; dimensions in slabs, since a sum
// of partial sums rounds less than one long sum. y and s hold 4 rows of D, out 4 rows of `size`.
constexpr int64_t kSlab = 32;

template <typename T>
static void energies_of_four(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                             T* out, T* smallest) {
  Vec<T> low[4];
  for (int q = 0; q < 4; ++q) low[q] = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> total[4];
    for (int q = 0; q < 4; ++q) total[q] = load(block.r + j);
    for (int64_t start = 0; start < D; start += kSlab) {
      const int64_t stop = start + kSlab < D ? start + kSlab : D;
      Vec<T> partial[4];
      for (int q = 0; q < 4; ++q) partial[q] = broadcast(T(0));
      for (int64_t d = start; d < stop; ++d) {
        const Vec<T> g = load(block.g + d * size + j);
        for (int q = 0; q < 4; ++q) {
          Vec<T> difference = fnma(broadcast(s[q * D + d]), g, broadcast(y[q * D + d]));
          partial[q] = fma(difference, difference, partial[q]);
        }
      }
      for (int q = 0; q < 4; ++q) total[q] = add(total[q], partial[q]);
    }
    for (int q = 0; q < 4; ++q) {
      store(out + q * size + j, total[q]);
      low[q] = min(low[q], total[q]);
    }
  }
  for (int q = 0; q < 4; ++q) smallest[q] = least(low[q]);
}
