// Runs the kernels on threads of its own, which a sanitizer can follow from start to end.
// PyTorch's pool is OpenMP's, whose barriers ThreadSanitizer does not recognise.
//
// It takes the baseline instruction set: threads, memory and the order of work are the same source
// for all. Every input and output is exactly as large as it says, so that a step beyond one shows.
// Exit status 1: a result on several threads differs from that on one.
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/columns/driver.h"
#include "cpu/dispatch.h"
#include "cpu/rows/driver.h"
#include "cpu/soft/driver.h"

namespace lebm::baseline {

const RowKernel row_kernel = {rows<float>, rows<double>};
const ColumnKernel column_kernel = {columns<float>, columns<double>};
const SoftKernels soft_kernels = {kSoftKernel<float>, kSoftKernel<double>};

}  // namespace lebm::baseline

namespace {

using lebm::Parallel;

constexpr int kThreads = 3;

// Tasks go to the threads in turn, so that neighbouring tasks are always on different threads,
// however small they are. Nothing orders the threads between the start and the end of the pool.
void run_on_threads(int64_t count, Parallel::Body body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t first = 0; first < kThreads; ++first)
    threads.emplace_back([=] {
      for (int64_t i = first; i < count; i += kThreads) body(context, i);
    });
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
std::vector<T> numbers(int64_t count, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<T> normal;
  std::vector<T> x(count);
  for (T& value : x) value = normal(generator);
  return x;
}

constexpr double kMixed = -1;  // a temperature a query, from hot to cold

enum With {
  kNothing = 0,
  kWeights = 1,
  kEnergies = 2,
  kScales = 4,
  kOneScale = 8,
  kStray = 16,
  kDropped = 32
};

struct Case {
  int64_t B, M, N, D;
  double beta;
  int with;
  double tol;
};

constexpr int kEverything = kWeights | kEnergies | kScales;

const Case kCases[] = {
    {1, 300, 700, 2, 1, kNothing, -1},         // tiles of queries on all threads
    {1, 2, 3001, 2, 30, kScales, -1},          // latents in splits, merged
    {1, 2, 3001, 3, INFINITY, kWeights, -1},   // the same with weights, when cold
    {1, 520, 2100, 2, 1e4, kNothing, -1},      // latents and queries sorted by place
    {1, 260, 1030, 3, 1e3, kEnergies, 1e-3},   // with energies, and blocks pruned by tol
    {14, 17, 33, 1, 1e-7, kScales, -1},        // grids on all threads
    {1, 65, 255, 5, 1, kEverything, -1},       // more dimensions than are unrolled
    {1, 50, 200, 50, 0.05, kNothing, -1},      // energies as products
    {1, 50, 200, 131, 0.02, kOneScale, -1},    // the same in small blocks
    {1, 515, 700, 2, 2, kNothing, -1},         // series
    {1, 515, 700, 2, 2, kEnergies, -1},        // the same with energies
    {1, 515, 700, 1, 3, kOneScale, -1},        // on a line, scaled
    {2, 5, 4099, 2, 10, kNothing, -1},         // latents streamed
    {1, 5, 4099, 4, 1, kStray, -1},            // one of them infinite: no stream after all
    {1, 70, 600, 2, kMixed, kEverything, -1},  // every regime of a query
    {1, 70, 600, 4, kMixed, kNothing, -1},     // and about the blocks' centres
    {1, 70, 600, 6, kMixed, kEnergies, -1},    // and at more dimensions
    {3, 1, 1, 1, 1, kEverything, -1},          // the smallest problem
};

// The memory of a case's arguments, and the problem that points to it.
template <typename T>
struct Arguments {
  std::vector<T> y, decoded, beta, scale, log_weight, latent_energy;
  lebm::Problem<T> problem;

  explicit Arguments(const Case& c)
      : y(numbers<T>(c.B * c.M * c.D, 0)),
        decoded(numbers<T>(c.B * c.N * c.D, 1)),
        beta(c.B * c.M, T(c.beta)),
        scale(numbers<T>(c.with & kOneScale ? c.D : c.B * c.M * c.D, 2)),
        log_weight(numbers<T>(c.B * c.N, 3)),
        latent_energy(numbers<T>(c.B * c.N, 4)),
        problem{c.B, c.M, c.N, c.D, c.tol, {}, {}, {}, {}, {}, {}} {
    const T mixed[] = {T(0), T(1e-9), T(0.01), T(1), T(30), T(1e4), T(INFINITY)};
    for (int64_t i = 0; c.beta == kMixed && i < c.B * c.M; ++i) beta[i] = mixed[i % 7];
    if (c.with & kStray) decoded[c.N / 2 * c.D] = T(INFINITY);
    problem.y = {y.data(), {c.M * c.D, c.D, 1}};
    problem.decoded = {decoded.data(), {c.N * c.D, c.D, 1}};
    // Series need a single number for a single temperature.
    problem.beta = {beta.data(), {c.M, c.beta == kMixed ? 1 : 0, 0}};
    if (c.with & kScales) problem.scale = {scale.data(), {c.M * c.D, c.D, 1}};
    if (c.with & kOneScale) problem.scale = {scale.data(), {0, 0, 1}};
    if (c.with & kWeights) problem.log_weight = {log_weight.data(), {c.N, 1, 0}};
    if (c.with & kEnergies) problem.latent_energy = {latent_energy.data(), {c.N, 1, 0}};
  }
};

// The outputs beside F: they decide how the sums are taken.
enum Wanted { kFreeEnergy, kSlopeOfY, kGradients, kPosterior };

template <typename T>
struct Results {
  std::vector<T> free_energy, slope_y, slope_scale, mean, energy, relative_entropy;
  std::vector<double> state, slope_beta;
  std::vector<int64_t> index;
  std::vector<T> grad_decoded, grad_log_weight, grad_latent_energy;

  // Null for an output that is not wanted.
  template <typename U>
  static U* pointer(std::vector<U>& x) {
    return x.empty() ? nullptr : x.data();
  }
};

template <typename T>
Results<T> solve(const Case& c, Wanted wanted, const Parallel& parallel) {
  const int64_t queries = c.B * c.M, latents = c.B * c.N;
  const Arguments<T> arguments(c);
  Results<T> r;
  r.free_energy.resize(queries);
  r.state.resize(lebm::kStateSize * queries);
  if (wanted >= kSlopeOfY) r.slope_y.resize(queries * c.D);
  if (wanted >= kGradients) r.slope_scale.resize(queries * c.D);
  if (wanted >= kGradients) r.slope_beta.resize(queries);
  if (wanted >= kPosterior) r.mean.resize(queries * c.D);
  if (wanted >= kPosterior) r.energy.resize(queries);
  if (wanted >= kPosterior) r.relative_entropy.resize(queries);
  if (wanted >= kPosterior) r.index.resize(queries);
  const lebm::RowOutputs<T> rows{r.free_energy.data(),    r.state.data(),
                                 r.pointer(r.slope_y),    r.pointer(r.slope_scale),
                                 r.pointer(r.slope_beta), r.pointer(r.mean),
                                 r.pointer(r.energy),     r.pointer(r.relative_entropy),
                                 r.pointer(r.index)};
  r.grad_decoded.resize(latents * c.D);
  // Nobody wants the gradient of an argument that is absent.
  if (wanted >= kGradients && (c.with & kWeights)) r.grad_log_weight.resize(latents);
  if (c.with & kEnergies) r.grad_latent_energy.resize(latents);
  const std::vector<T> grad = numbers<T>(queries, 5);
  const lebm::ColumnArguments<T> columns{grad.data(), r.state.data(), r.grad_decoded.data(),
                                         r.pointer(r.grad_log_weight),
                                         r.pointer(r.grad_latent_energy)};
  const lebm::Kernels& kernels = lebm::kernels();
  kernels.rows(arguments.problem, rows, parallel);
  kernels.columns(arguments.problem, columns, parallel);
  return r;
}

// Whether they agree to the rounding of float's sums taken in another order.
template <typename T>
bool agree(const std::vector<T>& a, const std::vector<T>& b) {
  double size = 1;
  for (T x : b) size = std::isfinite(x) ? std::fmax(size, std::fabs(x)) : size;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool same = a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]));
    if (!same && !(std::fabs(double(a[i]) - double(b[i])) <= 1e-3 * size)) return false;
  }
  return true;
}

template <typename T>
bool agree(const Results<T>& a, const Results<T>& b) {
  return agree(a.free_energy, b.free_energy) && agree(a.slope_y, b.slope_y) &&
         agree(a.mean, b.mean) && agree(a.grad_decoded, b.grad_decoded) &&
         agree(a.grad_log_weight, b.grad_log_weight) &&
         agree(a.grad_latent_energy, b.grad_latent_energy);
}

template <typename T>
bool threads_change_nothing(const Case& c, Wanted wanted) {
  const Parallel threads{run_on_threads, kThreads};
  const Results<T> alone = solve<T>(c, wanted, lebm::on_this_thread());
  // Two callers at once, each with threads of its own.
  Results<T> results[2];
  std::thread other([&] { results[1] = solve<T>(c, wanted, threads); });
  results[0] = solve<T>(c, wanted, threads);
  other.join();
  bool right = true;
  for (const Results<T>& r : results) right &= agree(r, alone);
  if (!right)
    std::printf("B=%d M=%d N=%d D=%d, %d wanted, %d bytes: threads change the result\n", int(c.B),
                int(c.M), int(c.N), int(c.D), int(wanted), int(sizeof(T)));
  return right;
}

struct SoftCase {
  int64_t A, N, C;
  double beta;
  int with;  // kWeights, those of each row where kDropped; kStray: an infinite energy in the first
             // row
};

const SoftCase kSoftCases[] = {
    {300, 100, 1, 1, kNothing},               // rows on all threads
    {2, 70001, 1, 1, kWeights},               // rows in pieces
    {3, 37, 45, kMixed, kWeights},            // columns, in every regime
    {40, 129, 1, kMixed, kStray},             // excesses in place of energies
    {9, 61, 1, kMixed, kWeights | kDropped},  // weights of each row, some latents dropped
    {4, 61, 7, kMixed, kWeights | kDropped},
    {1, 1, 1, 1, kNothing},  // the smallest problem
};

// The soft minima (maxima where latents are dropped), their distributions and the gradient of
// these.
template <typename T>
std::vector<std::vector<T>> solve_soft(const SoftCase& c, const Parallel& parallel) {
  const int64_t results = c.A * c.C, size = results * c.N;
  std::vector<T> energy = numbers<T>(size, 0), beta(results, T(c.beta));
  const T mixed[] = {T(0), T(1e-9), T(0.01), T(1), T(30), T(1e4), T(INFINITY)};
  for (int64_t i = 0; c.beta == kMixed && i < results; ++i) beta[i] = mixed[i % 7];
  if (c.with & kStray) energy[c.N / 2] = T(INFINITY);
  const bool dropped = c.with & kDropped;
  std::vector<T> log_weight = numbers<T>(dropped ? size : c.N, 3);
  const std::vector<T> grad = numbers<T>(size, 5), factor = numbers<T>(results, 6);
  for (int64_t i = 0; dropped && i < size; i += 5) log_weight[i] = -T(INFINITY);
  lebm::SoftProblem<T> problem{c.A, c.N, c.C, dropped, energy.data(), beta.data(), nullptr, 1, 0};
  if (c.with & kWeights) problem.log_weight = log_weight.data();
  if (dropped) problem.log_weight_stride = c.N;
  std::vector<T> value(results), p(size), by_energy(size), slope(size);
  const lebm::SoftKernels& soft = lebm::kernels().soft;
  auto run = [&](const lebm::SoftKernel<T>& kernel) {
    kernel.softmin(problem, value.data(), parallel);
    kernel.softargmin(problem, nullptr, p.data(), parallel);
    kernel.softargmin(problem, factor.data(), by_energy.data(), parallel);
    problem.energy = p.data();
    kernel.slopes(problem, grad.data(), slope.data(), parallel);
  };
  if constexpr (sizeof(T) == 4)
    run(soft.f32);
  else
    run(soft.f64);
  return {value, p, by_energy, slope};
}

template <typename T>
bool threads_change_no_soft_minimum(const SoftCase& c) {
  const auto alone = solve_soft<T>(c, lebm::on_this_thread());
  const auto shared = solve_soft<T>(c, {run_on_threads, kThreads});
  bool right = true;
  for (size_t i = 0; i < alone.size(); ++i) right &= agree(shared[i], alone[i]);
  if (!right)
    std::printf("A=%d N=%d C=%d, %d bytes: threads change the soft minimum\n", int(c.A), int(c.N),
                int(c.C), int(sizeof(T)));
  return right;
}

}  // namespace

int main() {
  bool right = true;
  for (const SoftCase& c : kSoftCases) {
    right &= threads_change_no_soft_minimum<float>(c);
    right &= threads_change_no_soft_minimum<double>(c);
  }
  for (const Case& c : kCases) {
    right &= threads_change_nothing<float>(c, kFreeEnergy);
    right &= threads_change_nothing<double>(c, kSlopeOfY);
    right &= threads_change_nothing<float>(c, kGradients);
    right &= threads_change_nothing<double>(c, kPosterior);
  }
  return right ? 0 : 1;
}
