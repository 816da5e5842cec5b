#include "order.h"

#include <algorithm>

namespace lebm {

void order_in_blocks(Place* places, int64_t count, int D, int64_t block) {
  if (count <= block) return;
  int longest = 0;
  float side = -1;
  for (int d = 0; d < D; ++d) {
    float low = places[0].x[d], high = low;
    for (int64_t i = 1; i < count; ++i) {
      low = std::min(low, places[i].x[d]);
      high = std::max(high, places[i].x[d]);
    }
    if (high - low > side) {
      side = high - low;
      longest = d;
    }
  }
  // A multiple of the block, so that leaves and blocks coincide.
  const int64_t blocks = (count + block - 1) / block, left = blocks / 2 * block;
  std::nth_element(
      places, places + left, places + count, [longest](const Place& a, const Place& b) {
        // The number decides between equals, so that the order does not depend on the algorithm.
        return a.x[longest] < b.x[longest] || (a.x[longest] == b.x[longest] && a.index < b.index);
      });
  order_in_blocks(places, left, D, block);
  order_in_blocks(places + left, count - left, D, block);
}

}  // namespace lebm
