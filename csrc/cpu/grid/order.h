// An order of points in which consecutive blocks are compact boxes.
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace lebm {

// The coordinates of a point, as exact as the order needs them, and its index.
struct Place {
  float x[3];
  uint32_t index;
};

// Orders the places so that every `block` consecutive ones lie together (the last may be fewer):
// the leaves of a k-d tree, cut along the longest side of the bounding box. The order does not
// depend on the threads.
void order_in_blocks(Place* places, int64_t count, int D, int64_t block, const Parallel& parallel);

}  // namespace lebm
