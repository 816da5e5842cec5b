// The column pass over a whole problem. Included inside an instruction set's namespace, after
// columns.h.

struct NoChunk {};

template <typename T, int kD>
struct ChunkOf {
  using type = CentredChunk<T, kD>;
};

template <typename T>
struct ChunkOf<T, 0> {
  using type = NoChunk;
};

template <typename T, int kD>
using Chunk = typename ChunkOf<T, kD>::type;

template <typename T, int kD>
static void queries_against_block(const ColumnTask<T>& task, const Block<T>& block,
                                  int64_t first_query, int64_t last_query, T* scratch,
                                  const ColumnSums<T>& sums) {
  Chunk<T, kD> centred;
  for (int how = 0; how < kTreatments; ++how) {
    const int64_t start = task.ends[how] > first_query ? task.ends[how] : first_query;
    const int64_t stop = task.ends[how + 1] < last_query ? task.ends[how + 1] : last_query;
    for (int64_t q = start; q < stop; q += kChunk) {
      const int64_t end = q + kChunk < stop ? q + kChunk : stop;
      switch (how) {
        case kFinite:
          if constexpr (kD > 0) {
            if (!task.grid->weighted) {
              finite_queries_centred(task, block, q, end, centred, scratch, sums);
              break;
            }
          }
          treat<T, kD, kFinite>(task, block, q, end, scratch, sums);
          break;
        case kShallow:
          treat<T, kD, kShallow>(task, block, q, end, scratch, sums);
          break;
        case kFlat:
          treat<T, kD, kFlat>(task, block, q, end, scratch, sums);
          break;
        default:
          treat<T, kD, kFrozen>(task, block, q, end, scratch, sums);
          break;
      }
    }
  }
}

template <typename T>
static void queries_against_any(const ColumnTask<T>& task, const Block<T>& block,
                                int64_t first_query, int64_t last_query, T* scratch,
                                const ColumnSums<T>& sums) {
  switch (task.grid->D) {
    case 1:
      return queries_against_block<T, 1>(task, block, first_query, last_query, scratch, sums);
    case 2:
      return queries_against_block<T, 2>(task, block, first_query, last_query, scratch, sums);
    case 3:
      return queries_against_block<T, 3>(task, block, first_query, last_query, scratch, sums);
    case 4:
      return queries_against_block<T, 4>(task, block, first_query, last_query, scratch, sums);
    default:
      return queries_against_block<T, 0>(task, block, first_query, last_query, scratch, sums);
  }
}

template <typename T>
struct ColumnMemory {
  ColumnQuery<T>* queries;
  T *y, *s;
  unsigned char* how;
  BlockFlags* flags;
  void *packed, *order_of_latents;

  static size_t bytes(const Problem<T>& p) { return carve(nullptr, p, nullptr); }
  ColumnMemory(void* memory, const Problem<T>& p) { carve(static_cast<char*>(memory), p, this); }

 private:
  // Energies are taken four rows at a time: three more may be read.
  static size_t carve(char* memory, const Problem<T>& p, ColumnMemory* out) {
    const size_t rows = p.M + 3;
    const size_t sizes[] = {sizeof(ColumnQuery<T>) * rows,
                            sizeof(T) * rows * p.D,
                            sizeof(T) * rows * p.D,
                            rows,
                            sizeof(BlockFlags) * num_blocks(p),
                            grid_bytes(p, streams(p)),
                            sorts(p) ? order_bytes(p.N) : 0};
    size_t at[8] = {0};
    for (int i = 0; i < 7; ++i) at[i + 1] = at[i] + padded(sizes[i]);
    if (out) {
      out->queries = reinterpret_cast<ColumnQuery<T>*>(memory + at[0]);
      out->y = reinterpret_cast<T*>(memory + at[1]);
      out->s = reinterpret_cast<T*>(memory + at[2]);
      out->how = reinterpret_cast<unsigned char*>(memory + at[3]);
      out->flags = reinterpret_cast<BlockFlags*>(memory + at[4]);
      out->packed = memory + at[5];
      out->order_of_latents = memory + at[6];
    }
    return at[7];
  }
};

template <typename T>
static Treatment treatment(double beta, double L, bool wants_l) {
  if (is_cold<T>(beta)) return kFrozen;
  if (!wants_l) return kFinite;
  if (L == 0) return kFlat;  // kHot, or all energies equal, where both say the same
  return L > kSmallL ? kShallow : kFinite;
}

// Sorts the queries by treatment and fills task.queries, y and s. Returns sum G / beta over those
// whose grad_l still lacks + w sum G / beta. A query without gradient is left out.
template <typename T>
static double sort_queries(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                           const Grid<T>& grid, ColumnMemory<T>& memory, ColumnTask<T>& task,
                           int64_t* ends, bool& poisoned) {
  const T* grad = arguments.grad + b * p.M;
  const double* state = arguments.state + 3 * b * p.M;
  int64_t count[kTreatments] = {0};
  for (int64_t m = 0; m < p.M; ++m) {
    memory.how[m] = kTreatments;
    if (grad[m] == 0) continue;
    poisoned |= !is_finite(state[3 * m]) || !is_finite(state[3 * m + 1]);
    const double beta = *p.beta.at(b, m);
    memory.how[m] = treatment<T>(beta, state[3 * m + 1], task.wants_l);
    ++count[memory.how[m]];
  }
  ends[0] = 0;
  for (int k = 0; k < kTreatments; ++k) ends[k + 1] = ends[k] + count[k];
  int64_t next[kTreatments];
  for (int k = 0; k < kTreatments; ++k) next[k] = ends[k];
  double pulled = 0;
  for (int64_t m = 0; m < p.M; ++m) {
    if (memory.how[m] == kTreatments) continue;
    const int64_t at = next[memory.how[m]]++;
    for (int64_t d = 0; d < p.D; ++d) {
      memory.y[at * p.D + d] = p.y.at(b, m)[d * p.y.stride[2]];
      memory.s[at * p.D + d] = p.scale.data ? p.scale.at(b, m)[d * p.scale.stride[2]] : T(1);
    }
    const double beta = *p.beta.at(b, m), G = grad[m];
    const double bits = (state[3 * m + 1] + __builtin_log(grid.total)) * kLog2E;
    double whole = __builtin_rint(bits), rest = __builtin_exp2(whole - bits);
    if (is_cold<T>(beta) && grid.weighted) {
      whole = __builtin_rint(bits - state[3 * m + 2]);
      rest = __builtin_exp2(-state[3 * m + 2]);
    }
    ColumnQuery<T>& q = memory.queries[at];
    q = {T(state[3 * m]), T(beta * kLog2E), T(whole), T(G * rest), T(state[3 * m + 2]), T(0)};
    switch (memory.how[m]) {
      case kFinite:
        q.pull = T(-G / beta * rest);
        pulled += G / beta;
        break;
      case kShallow:
        q.share = T(G / grid.total);
        q.pull = T(-G / beta);
        break;
      case kFlat:
        q.share = T(G / grid.total);
        q.pull = T(G);
        break;
      default:
        break;
    }
  }
  const int64_t used = ends[kTreatments];
  fill(memory.y + used * p.D, 3 * p.D, T(0));
  fill(memory.s + used * p.D, 3 * p.D, T(0));
  return pulled;
}

// Scratch of one block of latents.
template <typename T>
struct BlockScratch {
  ColumnSums<T> sums;
  T* energy;
  T* unpacked;  // a streamed block

  static size_t bytes(const Grid<T>& grid) {
    const int64_t D = grid.D, block = grid.block, own = block * (row_length<T>(D) + 2);
    return padded(sizeof(double) * doubles(D, block)) +
           padded(sizeof(T) * size_t(own + energies(D, block)) + grid.scratch_bytes());
  }
  // The sums over all chunks lie one behind the other.
  static size_t doubles(int64_t D, int64_t block) { return size_t(block * (row_length<T>(D) + 3)); }
  static int64_t energies(int64_t D, int64_t block) {
    return D <= kFewDimensions ? 0 : TiledColumns<T>::count(D, block);
  }
  BlockScratch(void* memory, const Grid<T>& grid) {
    const int64_t D = grid.D, block = grid.block, row = row_length<T>(D);
    sums.g_all = static_cast<double*>(memory);
    sums.r_all = sums.g_all + row * block;
    sums.l_all = sums.r_all + block;
    sums.l_small = sums.l_all + block;
    sums.g = reinterpret_cast<T*>(static_cast<char*>(memory) +
                                  padded(sizeof(double) * doubles(D, block)));
    sums.r = sums.g + row * block;
    sums.l = sums.r + block;
    energy = sums.l + block;
    unpacked = energy + energies(D, block);
  }
  void clear(int64_t D, int64_t block) { fill(sums.g_all, int64_t(doubles(D, block)), 0.0); }
};

// -2 sums [D][block] to out [block][D].
template <typename T, int kD>
static void write_gradient(const double* __restrict sums, int64_t block, T* __restrict out) {
  for (int64_t j = 0; j < block; ++j)
    for (int d = 0; d < kD; ++d) out[j * kD + d] = T(-2 * sums[d * block + j]);
}

template <typename T>
static void write_block(const Problem<T>& p, const ColumnArguments<T>& out, int64_t b,
                        const Grid<T>& grid, const Block<T>& block, const ColumnSums<T>& sums,
                        double pulled, bool poisoned) {
  if (grid.plain && out.grad_decoded && !poisoned && grid.whole[block.first / grid.block]) {
    T* gradient = out.grad_decoded + (b * p.N + block.first) * p.D;
    switch (p.D) {
      case 1:
        return write_gradient<T, 1>(sums.g_all, grid.block, gradient);
      case 2:
        return write_gradient<T, 2>(sums.g_all, grid.block, gradient);
      case 3:
        return write_gradient<T, 3>(sums.g_all, grid.block, gradient);
      default:
        return write_gradient<T, 4>(sums.g_all, grid.block, gradient);
    }
  }
  const double total = grid.total;
  const bool few = p.D <= kFewDimensions;
  const int64_t of_latent = few ? 1 : row_length<T>(p.D), of_dimension = few ? grid.block : 1;
  for (int64_t j = 0; j < grid.block && block.first + j < p.N; ++j) {
    const int64_t n = grid.order ? grid.order[block.first + j] : block.first + j;
    const int64_t at = b * p.N + n;
    const T nan = T(__builtin_nan(""));
    const bool absent = block.r[j] == kAbsent<T>;
    for (int64_t d = 0; out.grad_decoded && d < p.D; ++d)
      out.grad_decoded[at * p.D + d] = poisoned ? nan
                                       : absent
                                           ? T(0)
                                           : T(-2 * sums.g_all[d * of_dimension + j * of_latent]);
    if (out.grad_latent_energy)
      out.grad_latent_energy[at] = poisoned ? nan : absent ? T(0) : T(sums.r_all[j]);
    if (out.grad_log_weight) {
      // A dropped latent has no weight; one of infinite energy has, and p = 0.
      const double of_weight =
          block.w[j] == 0 ? 0 : block.w[j] / total * (sums.l_small[j] + pulled);
      out.grad_log_weight[at] = poisoned ? nan : T((absent ? 0 : sums.l_all[j]) + of_weight);
    }
  }
}

// Few latents: the queries are cut in pieces too, and the pieces added in their order.
LEBM_INLINE int64_t query_pieces(int64_t blocks, int64_t used, const Parallel& parallel) {
  const int64_t wanted = 4 * parallel.threads, most = (used + kChunk - 1) / kChunk;
  if (parallel.threads == 1 || blocks >= wanted || most == 0) return 1;
  const int64_t pieces = (wanted + blocks - 1) / blocks;
  return pieces < most ? pieces : most;
}

// Fails where bounded_block does.
template <typename T>
static bool columns_of_packed(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                              const Grid<T>& grid, ColumnMemory<T>& memory,
                              const Parallel& parallel) {
  int64_t ends[kTreatments + 1];
  ColumnTask<T> task{&grid,
                     memory.queries,
                     memory.y,
                     memory.s,
                     ends,
                     arguments.grad_log_weight != nullptr,
                     p.scale.data != nullptr,
                     p.tol < 0 ? kUnseen<T> : __builtin_log2(p.tol)};
  bool poisoned = grid.has_nan;
  const double pulled = sort_queries(p, arguments, b, grid, memory, task, ends, poisoned);
  const int64_t used = ends[kTreatments], blocks = grid.num_blocks;
  const int64_t pieces = query_pieces(blocks, used, parallel);
  const ColumnSeries<T> series(p, b, task, poisoned ? 0 : used, parallel);
  const int64_t leaves = series.serves ? series.leaves() : 1,
                roots = (blocks + leaves - 1) / leaves;
  const size_t bytes = BlockScratch<T>::bytes(grid);
  auto scratch_of = [&](const BlockScratch<T>& own) {
    Grid<T> mine = grid;
    mine.scratch = own.unpacked;
    return mine;
  };
  auto sweep_piece = [&](const Block<T>& block, int64_t piece, BlockScratch<T>& own) {
    own.clear(p.D, grid.block);
    if (poisoned) return;
    if (series.serves) {
      const int64_t first = used * piece / pieces, last = used * (piece + 1) / pieces;
      const Scratch lists(series.list_bytes(last - first));
      return sweep_series(series, task, block.first / grid.block, first, last, &own.sums,
                          own.energy, lists.get());
    }
    queries_against_any(task, block, used * piece / pieces, used * (piece + 1) / pieces, own.energy,
                        own.sums);
  };
  if (series.serves && pieces == 1) {
    for_each(parallel, roots, [&](int64_t root) {
      const int64_t first = root * leaves, end = first + leaves < blocks ? first + leaves : blocks;
      const Scratch mine(bytes * size_t(leaves)), lists(series.list_bytes(used));
      auto own_of = [&](int64_t leaf) {
        return BlockScratch<T>(static_cast<char*>(mine.get()) + bytes * size_t(leaf), grid);
      };
      ColumnSums<T> sums[kRootLeaves];
      for (int64_t leaf = 0; leaf < leaves; ++leaf) {
        own_of(leaf).clear(p.D, grid.block);
        sums[leaf] = own_of(leaf).sums;
      }
      sweep_series(series, task, root, 0, used, sums, own_of(0).energy, lists.get());
      for (int64_t i = first; i < end; ++i)
        write_block(p, arguments, b, grid, grid.at(i), sums[i - first], pulled, poisoned);
    });
    return true;
  }
  if (pieces == 1) {
    const int64_t shares = blocks < 8 * parallel.threads ? blocks : 8 * parallel.threads;
    const Scratch flags(size_t(shares) * sizeof(bool));
    bool* failed = static_cast<bool*>(flags.get());
    for_each(parallel, shares, [&](int64_t share) {
      failed[share] = false;
      Scratch mine(bytes);
      BlockScratch<T> own(mine.get(), grid);
      for (int64_t i = blocks * share / shares; i < blocks * (share + 1) / shares; ++i) {
        Block<T> block;
        if (!bounded_block(scratch_of(own), i, block)) {
          failed[share] = true;
          return;
        }
        sweep_piece(block, 0, own);
        write_block(p, arguments, b, grid, block, own.sums, pulled, poisoned);
      }
    });
    for (int64_t share = 0; share < shares; ++share)
      if (failed[share]) return false;
    return true;
  }
  Scratch all(bytes * size_t(blocks * pieces));
  auto scratch_at = [&](int64_t i, int64_t piece) {
    char* start = static_cast<char*>(all.get()) + bytes * size_t(i * pieces + piece);
    return BlockScratch<T>(start, grid);
  };
  for_each(parallel, blocks * pieces, [&](int64_t i) {
    BlockScratch<T> own = scratch_at(i / pieces, i % pieces);
    sweep_piece(scratch_of(own).at(i / pieces), i % pieces, own);
  });
  for (int64_t i = 0; i < blocks; ++i) {
    BlockScratch<T> whole = scratch_at(i, 0);
    for (int64_t piece = 1; piece < pieces; ++piece) {
      BlockScratch<T> part = scratch_at(i, piece);
      const auto count = int64_t(BlockScratch<T>::doubles(p.D, grid.block));
      for (int64_t k = 0; k < count; ++k) whole.sums.g_all[k] += part.sums.g_all[k];
    }
    write_block(p, arguments, b, grid, scratch_of(whole).at(i), whole.sums, pulled, poisoned);
  }
  return true;
}

template <typename T>
static void columns_of_grid(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                            void* scratch, const Parallel& parallel) {
  ColumnMemory<T> memory(scratch, p);
  if (streams(p)) {
    // Each block is met once: no need to read the latents for their bounds before.
    const Grid<T> grid =
        pack(p, b, memory.packed, memory.flags, nullptr, parallel, true, /*bounded=*/false);
    if (columns_of_packed(p, arguments, b, grid, memory, parallel)) return;
  }
  const Packed<T> packed(p, b, memory.packed, memory.flags,
                         sorts(p) ? memory.order_of_latents : nullptr, parallel);
  columns_of_packed(p, arguments, b, packed.grid, memory, parallel);
}

template <typename T>
static void columns(const Problem<T>& p, const ColumnArguments<T>& arguments,
                    const Parallel& parallel) {
  each_grid(p.B, ColumnMemory<T>::bytes(p), parallel,
            [&](int64_t b, void* memory, const Parallel& inner) {
              columns_of_grid(p, arguments, b, memory, inner);
            });
}
