#include "order.h"

#include <algorithm>
#include <vector>

namespace lebm {

namespace {

struct Piece {
  Place* places;
  int64_t count;
};

// Cuts a piece of several blocks in two along its longest side; returns the size of the first.
int64_t cut(Piece piece, int D, int64_t block) {
  Place* places = piece.places;
  int longest = 0;
  float side = -1;
  for (int d = 0; d < D; ++d) {
    float low = places[0].x[d], high = low;
    for (int64_t i = 1; i < piece.count; ++i) {
      low = std::min(low, places[i].x[d]);
      high = std::max(high, places[i].x[d]);
    }
    if (high - low > side) {
      side = high - low;
      longest = d;
    }
  }
  // A multiple of the block, so that leaves and blocks coincide.
  const int64_t blocks = (piece.count + block - 1) / block, left = blocks / 2 * block;
  std::nth_element(
      places, places + left, places + piece.count, [longest](const Place& a, const Place& b) {
        // Ties are decided by the index, so that the order does not depend on the algorithm.
        return a.x[longest] < b.x[longest] || (a.x[longest] == b.x[longest] && a.index < b.index);
      });
  return left;
}

void cut_to_blocks(Piece piece, int D, int64_t block) {
  while (piece.count > block) {
    const int64_t left = cut(piece, D, block);
    cut_to_blocks({piece.places, left}, D, block);
    piece = {piece.places + left, piece.count - left};
  }
}

}  // namespace

void order_in_blocks(Place* places, int64_t count, int D, int64_t block, const Parallel& parallel) {
  struct Task {
    std::vector<Piece> pieces, halves;
    int D;
    int64_t block;
  } task{{{places, count}}, {}, D, block};
  // Level by level until there are enough pieces for all threads; then each piece on its own.
  while (int64_t(task.pieces.size()) < 4 * parallel.threads && parallel.threads > 1) {
    task.halves.assign(2 * task.pieces.size(), {nullptr, 0});
    parallel.run(
        int64_t(task.pieces.size()),
        [](void* context, int64_t i) {
          Task& t = *static_cast<Task*>(context);
          const Piece piece = t.pieces[i];
          const int64_t left = piece.count > t.block ? cut(piece, t.D, t.block) : piece.count;
          t.halves[2 * i] = {piece.places, left};
          t.halves[2 * i + 1] = {piece.places + left, piece.count - left};
        },
        &task);
    task.pieces.swap(task.halves);
  }
  parallel.run(
      int64_t(task.pieces.size()),
      [](void* context, int64_t i) {
        const Task& t = *static_cast<Task*>(context);
        cut_to_blocks(t.pieces[i], t.D, t.block);
      },
      &task);
}

}  // namespace lebm
