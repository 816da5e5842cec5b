// The least work for a pair (query, latent), on one thread. In two dimensions, with all data in L1:
//
// x = a0 g0 + (a1 g1 + c): two FMAs. a belongs to the query, g and c belong to the latent.
//
// 2^x = p(f) 2^n with n = round(x) and f = x - n. Adding a large number to x yields n; p has degree
// 5 and takes five FMAs; n is added to the exponent bits of p.
//
// sum += 2^x: one sum per query and lane.
//
// There is no maximum, no remainder and no check. A kernel that computes F can approach this speed,
// and exceed it only by pruning pairs. Q queries and L vectors of latents take each step together,
// so that they hide each other's latency. peak.py compiles this file and finds the fastest Q and L.
//
// More dimensions and gradients take more FMAs. The second loop has nothing else: kChains
// independent ones, all in registers.

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Vec = float __attribute__((vector_size(4 * kLanes)));
using Int = int32_t __attribute__((vector_size(4 * kLanes)));

// The low bits of x + kMagic hold round(x).
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23

// Taylor coefficients of 2^f, ln(2)^k / k!. The error is below 2.5e-6 for f in [-1/2, 1/2].
constexpr float kPolynomial[6] = {1.0f,          0.693147181f,   0.240226507f,
                                  0.0555041087f, 0.00961812911f, 0.00133335581f};

// Adds the sum over the latents of 2^x to sums[Q]. queries: [Q, 2]; latents: [vectors, 3], the
// columns g0, g1 and c.
template <int Q, int L>
__attribute__((noinline)) void row_pass(const float* queries, const Vec* latents, int64_t vectors,
                                        Vec* sums) {
  constexpr int K = Q * L;
  Vec a0[Q], a1[Q], sum[Q];
  for (int q = 0; q < Q; ++q) {
    a0[q] = queries[2 * q] - Vec{};
    a1[q] = queries[2 * q + 1] - Vec{};
    sum[q] = sums[q];
  }
  for (int64_t v = 0; v < vectors; v += L, latents += 3 * L) {
    Vec x[K], n[K], p[K];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      const Vec* g = latents + 3 * (k % L);
      x[k] = a0[k / L] * g[0] + (a1[k / L] * g[1] + g[2]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) n[k] = x[k] + kMagic;
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) x[k] = x[k] - (n[k] - kMagic);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) p[k] = kPolynomial[5] * x[k] + kPolynomial[4];
#pragma GCC unroll 4
    for (int degree = 3; degree >= 0; --degree)
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) p[k] = p[k] * x[k] + kPolynomial[degree];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) sum[k / L] += (Vec)((Int)p[k] + ((Int)n[k] << 23));
  }
  for (int q = 0; q < Q; ++q) sums[q] = sum[q];
}

template <int Q, int L>
void repeat(const float* queries, const Vec* latents, int64_t vectors, int64_t repeats, Vec* sums) {
  for (int64_t i = 0; i < repeats; ++i) row_pass<Q, L>(queries, latents, vectors, sums);
}

using Repeat = void (*)(const float*, const Vec*, int64_t, int64_t, Vec*);

// Indexed by the binary logarithms of Q and L.
constexpr Repeat kVariants[3][3] = {{repeat<1, 1>, repeat<1, 2>, repeat<1, 4>},
                                    {repeat<2, 1>, repeat<2, 2>, repeat<2, 4>},
                                    {repeat<4, 1>, repeat<4, 2>, repeat<4, 4>}};

// Independent FMAs, enough to hide their latency. With the factor and the addend they fill the
// sixteen registers that every processor with SSE has.
constexpr int kChains = 14;

// chain = factor chain + addend, `count` times for each of the chains.
__attribute__((noinline)) void multiply_add(Vec factor, Vec addend, int64_t count, Vec* chains) {
  Vec chain[kChains];
  for (int k = 0; k < kChains; ++k) chain[k] = chains[k];
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < kChains; ++k) chain[k] = factor * chain[k] + addend;
  }
  for (int k = 0; k < kChains; ++k) chains[k] = chain[k];
}

}  // namespace

extern "C" {

// Floats per vector.
int lanes() { return kLanes; }

// Adds repeats * (the sum over the latents of 2^x) to sums. queries: [Q, 2]; latents:
// [vectors, 3, lanes]; sums: [Q, lanes]. Q and L must be 1, 2 or 4, L must divide vectors, and
// latents and sums must be aligned to vectors.
void exponential_loop(int Q, int L, const float* queries, const float* latents, int64_t vectors,
                      int64_t repeats, float* sums) {
  kVariants[Q / 2][L / 2](queries, reinterpret_cast<const Vec*>(latents), vectors, repeats,
                          reinterpret_cast<Vec*>(sums));
}

// Vectors that the loop of FMAs works on.
int chains() { return kChains; }

// chains = factor chains + addend, `count` times. chains: [chains, lanes], aligned to vectors.
void multiply_add_loop(float factor, float addend, int64_t count, float* chains) {
  multiply_add(factor - Vec{}, addend - Vec{}, count, reinterpret_cast<Vec*>(chains));
}

}  // extern "C"
