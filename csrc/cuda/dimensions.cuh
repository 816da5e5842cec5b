// The numbers of dimensions D whose kernels hold a query's or latent's D numbers in registers.
#pragma once

namespace lebm::cuda {

constexpr int kNarrow = 4;  // narrow: D <= 4; wide: D > 4

// The D whose narrow kernels are compiled. Some tests compile only a few.
template <int... kD>
struct Dimensions {};
using AllDimensions = Dimensions<1, 2, 3, 4>;

}  // namespace lebm::cuda
