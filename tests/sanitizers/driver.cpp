// The kernels on threads of its own: what a sanitizer can follow from one end to the other.
// PyTorch's pool is OpenMP's, whose barriers ThreadSanitizer does not know.
//
// It takes the baseline instruction set and float alone: threads, memory and the order of work are
// the same source for all. Exit status 1: a result on threads is not that on one thread.
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/region.h"

namespace lebm::baseline {
namespace {
#include "cpu/lanes_baseline.h"
#include "cpu/kernels.inl"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"baseline", rows<float>, nullptr, columns<float>, nullptr};
}  // namespace lebm::baseline

namespace {

using lebm::Parallel;

constexpr int kThreads = 3;

// Tasks go to the threads in turn, so that neighbours are always on two of them, however little
// each has to do; between the start and the end of the pool nothing orders them.
void run_on_threads(int64_t count, Parallel::Body body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t first = 0; first < kThreads; ++first)
    threads.emplace_back([=] {
      for (int64_t i = first; i < count; i += kThreads) body(context, i);
    });
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> numbers(int64_t count, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) value = normal(generator);
  return x;
}

// One problem; its memory is exactly as large as it says, so that a step beyond it shows.
struct Case {
  int64_t B, M, N, D;
  float temperature;
  bool weighted, scaled;
  std::vector<float> y, decoded, beta, scale, log_weight, latent_energy;

  Case(int64_t B, int64_t M, int64_t N, int64_t D, float temperature, bool weighted, bool scaled)
      : B(B),
        M(M),
        N(N),
        D(D),
        temperature(temperature),
        weighted(weighted),
        scaled(scaled),
        y(numbers(B * M * D, 0)),
        decoded(numbers(B * N * D, 1)),
        beta(B * M, temperature),
        scale(numbers(B * M * D, 2)),
        log_weight(numbers(B * N, 3)),
        latent_energy(numbers(B * N, 4)) {}

  lebm::Problem<float> problem() const {
    lebm::Problem<float> p{B, M, N, D, -1.0, {}, {}, {}, {}, {}, {}};
    p.y = {y.data(), {M * D, D, 1}};
    p.decoded = {decoded.data(), {N * D, D, 1}};
    p.beta = {beta.data(), {M, 1, 0}};
    if (scaled) p.scale = {scale.data(), {M * D, D, 1}};
    if (weighted) p.log_weight = {log_weight.data(), {N, 1, 0}};
    if (weighted) p.latent_energy = {latent_energy.data(), {N, 1, 0}};
    return p;
  }
};

struct Results {
  std::vector<float> free_energy, slope_y, slope_scale, slope_beta, mean;
  std::vector<double> state;
  std::vector<int64_t> index;
  std::vector<float> grad_decoded, grad_log_weight, grad_latent_energy;
};

Results solve(const Case& c, const Parallel& parallel) {
  const int64_t queries = c.B * c.M, latents = c.B * c.N;
  Results r;
  for (auto* x : {&r.free_energy, &r.slope_beta}) x->resize(queries);
  for (auto* x : {&r.slope_y, &r.slope_scale, &r.mean}) x->resize(queries * c.D);
  r.state.resize(3 * queries);
  r.index.resize(queries);
  r.grad_decoded.resize(latents * c.D);
  r.grad_log_weight.resize(latents);
  r.grad_latent_energy.resize(latents);
  const lebm::Problem<float> p = c.problem();
  lebm::kernels().rows_f32(
      p,
      {r.free_energy.data(), r.state.data(), r.slope_y.data(), r.slope_scale.data(),
       r.slope_beta.data(), r.mean.data(), r.index.data()},
      parallel);
  const std::vector<float> grad = numbers(queries, 5);
  lebm::kernels().columns_f32(p,
                              {grad.data(), r.state.data(), r.grad_decoded.data(),
                               r.grad_log_weight.data(), r.grad_latent_energy.data()},
                              parallel);
  return r;
}

// Whether they agree to float's rounding of sums taken in another order.
bool agree(const std::vector<float>& a, const std::vector<float>& b) {
  double size = 1;
  for (float x : b) size = std::fmax(size, std::fabs(x));
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(double(a[i]) - b[i]) <= 1e-3 * size)) return false;
  return true;
}

bool agree(const Results& a, const Results& b) {
  return agree(a.free_energy, b.free_energy) && agree(a.slope_y, b.slope_y) &&
         agree(a.mean, b.mean) && agree(a.grad_decoded, b.grad_decoded) &&
         agree(a.grad_log_weight, b.grad_log_weight) &&
         agree(a.grad_latent_energy, b.grad_latent_energy);
}

}  // namespace

int main() {
  const Parallel threads{run_on_threads, kThreads};
  const Case cases[] = {
      {1, 300, 700, 2, 1.0f, false, false},    // tiles of queries shared out
      {1, 2, 3001, 2, 30.0f, false, true},     // latents in pieces, merged
      {1, 2, 3001, 3, INFINITY, true, false},  // the same with weights, when cold
      {1, 299, 5001, 2, 1e4f, false, false},   // latents and queries sorted by place
      {14, 17, 33, 1, 1e-7f, false, true},     // grids shared out
      {1, 65, 255, 5, 1.0f, true, true},       // more dimensions than are unrolled
  };
  bool right = true;
  for (const Case& c : cases) {
    const Results alone = solve(c, lebm::on_this_thread());
    // Two callers at once, each with threads of its own.
    Results results[2];
    std::thread other([&] { results[1] = solve(c, threads); });
    results[0] = solve(c, threads);
    other.join();
    for (const Results& r : results) {
      if (agree(r, alone)) continue;
      std::printf("B=%d M=%d N=%d D=%d: threads change the result\n", int(c.B), int(c.M), int(c.N),
                  int(c.D));
      right = false;
    }
  }
  return right ? 0 : 1;
}
