// The native operators on CPU: they turn tensors into the kernels' plain structures. Only PyTorch's
// stable ABI is used, so that one binary serves every PyTorch from 2.10 on.
//
//   rows:    F, state and, where wanted, slopes, mean and index
//   columns: the latent-side gradients, where wanted
//   softmin, softargmin, softargmin_slopes: of energies that one already has
//
// An output that is not wanted is another tensor, to be ignored.
//
// Arguments are canonical (see lebm_kernels/backends/contract.py): checked, [B, M, D]. Beyond that
// contract, B may be absent from all of them (outputs then lack it too), and beta, scale,
// log_weight and latent_energy broadcast: expanding the tensors in PyTorch would cost more than a
// small problem.
#include <torch/csrc/stable/library.h>
#include <unistd.h>

#include <string>

#include "cpu/dispatch.h"
#include "tensors.h"

namespace {

using namespace lebm;

void run_on_pool(int64_t count, lebm::Parallel::Body body, void* context) {
  if (count == 0) return;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

// The threads of the pool do not survive a fork, and its child would wait for them forever.
const pid_t kLoader = getpid();

// Waking the pool takes longer than this many products of a pair.
constexpr int64_t kFewProducts = 40000;

lebm::Parallel pool(double products) {
  if (products < kFewProducts) return lebm::on_this_thread();
  // The number of threads determines the splits, and so the last bits. A forked child runs on one
  // thread but keeps the number, so that its bits are the same.
  const bool forked = getpid() != kLoader;
  return {forked ? lebm::on_this_thread().run : run_on_pool,
          int64_t(torch::stable::get_num_threads())};
}

template <typename T>
lebm::Parallel pool(const lebm::Problem<T>& p) {
  return pool(double(p.B) * double(p.M) * double(p.N) * double(p.D));
}

Nine rows(const Tensor& y, const Tensor& decoded, const Tensor& beta,
          const std::optional<Tensor>& scale, const std::optional<Tensor>& log_weight,
          const std::optional<Tensor>& latent_energy, std::optional<double> tol, bool slope_y,
          bool slope_scale, bool slope_beta, bool mean, bool energy, bool relative_entropy,
          bool index) {
  const RowWants want{slope_y, slope_scale, slope_beta, mean, energy, relative_entropy, index};
  const Nine out = row_outputs(y, aoti_torch_device_type_cpu(), 0, want);
  if (std::get<0>(out).numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol);
    lebm::kernels().rows(p, pointers<T>(out, want), pool(p));
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  return out;
}

Three columns(const Tensor& grad_any, const Tensor& state_any, const Tensor& y,
              const Tensor& decoded, const Tensor& beta, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& log_weight, const std::optional<Tensor>& latent_energy,
              std::optional<double> tol, bool want_decoded, bool want_log_weight,
              bool want_latent_energy) {
  const Tensor grad = dense(grad_any), state = dense(state_any);
  const Three out = column_outputs(grad, decoded, aoti_torch_device_type_cpu(), 0, want_decoded,
                                   want_log_weight, want_latent_energy);
  if (decoded.numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol);
    lebm::kernels().columns(
        p, pointers<T>(grad, state, out, want_decoded, want_log_weight, want_latent_energy),
        pool(p));
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  return out;
}

template <typename T>
SoftProblem<T> soft_problem(const Tensor& energy, int64_t dim, const T& beta,
                            const std::optional<Tensor>& betas,
                            const std::optional<Tensor>& log_weight, bool largest) {
  SoftProblem<T> p{1, 1, 1, largest, constant<T>(energy), &beta, nullptr, 0, 0};
  for (int64_t i = 0; i < energy.dim(); ++i)
    (i < dim ? p.A : i > dim ? p.C : p.N) *= energy.size(i);
  if (betas) {
    p.beta = constant<T>(*betas);
    p.beta_stride = betas->dim() > 0 ? 1 : 0;
  }
  if (log_weight) {
    p.log_weight = constant<T>(*log_weight);
    p.log_weight_stride = log_weight->dim() > 1 ? p.N : 0;
  }
  return p;
}

// The energies are [..., N, ...] with N at `dim`. Values have the same dimensions without N, and
// distributions all. `betas` is [] or has a beta for each value; where absent, `beta` holds for
// all. `log_weight` is [N] or [results, N]. All tensors are contiguous.
Tensor softmin(const Tensor& energy, int64_t dim, double beta, const std::optional<Tensor>& betas,
               const std::optional<Tensor>& log_weight, bool largest) {
  std::vector<int64_t> size = sizes(energy, 0, {});
  size.erase(size.begin() + dim);
  const Tensor value = empty(size, energy.scalar_type(), aoti_torch_device_type_cpu(), 0);
  if (value.numel() == 0) return value;
  auto run = [&](auto zero, const auto& kernel) {
    using T = decltype(zero);
    const T one_beta = T(beta);
    kernel.softmin(soft_problem<T>(energy, dim, one_beta, betas, log_weight, largest),
                   data<T>(value), pool(double(energy.numel())));
  };
  const SoftKernels& soft = lebm::kernels().soft;
  energy.scalar_type() == ScalarType::Double ? run(0.0, soft.f64) : run(0.0f, soft.f32);
  return value;
}

// `factor`, one for each result of softmin, multiplies its distribution.
Tensor softargmin(const Tensor& energy, int64_t dim, double beta,
                  const std::optional<Tensor>& betas, const std::optional<Tensor>& log_weight,
                  bool largest, const std::optional<Tensor>& factor) {
  const Tensor p =
      empty(sizes(energy, 0, {}), energy.scalar_type(), aoti_torch_device_type_cpu(), 0);
  if (p.numel() == 0) return p;
  auto run = [&](auto zero, const auto& kernel) {
    using T = decltype(zero);
    const T one_beta = T(beta);
    kernel.softargmin(soft_problem<T>(energy, dim, one_beta, betas, log_weight, largest),
                      factor ? constant<T>(*factor) : nullptr, data<T>(p),
                      pool(double(energy.numel())));
  };
  const SoftKernels& soft = lebm::kernels().soft;
  energy.scalar_type() == ScalarType::Double ? run(0.0, soft.f64) : run(0.0f, soft.f32);
  return p;
}

// The gradient of the energies from that of their distribution p.
Tensor softargmin_slopes(const Tensor& p, const Tensor& grad_p, int64_t dim, double beta,
                         const std::optional<Tensor>& betas, bool largest) {
  const Tensor grad_energy =
      empty(sizes(p, 0, {}), p.scalar_type(), aoti_torch_device_type_cpu(), 0);
  if (p.numel() == 0) return grad_energy;
  auto run = [&](auto zero, const auto& kernel) {
    using T = decltype(zero);
    const T one_beta = T(beta);
    kernel.slopes(soft_problem<T>(p, dim, one_beta, betas, std::nullopt, largest),
                  constant<T>(grad_p), data<T>(grad_energy), pool(double(p.numel())));
  };
  const SoftKernels& soft = lebm::kernels().soft;
  p.scalar_type() == ScalarType::Double ? run(0.0, soft.f64) : run(0.0f, soft.f32);
  return grad_energy;
}

// The instruction sets that can run, best first, after the one in use: "avx2,avx2,baseline".
std::string instruction_sets() {
  std::string names = lebm::kernels().name;
  for (const lebm::Kernels* kernels : lebm::available_kernels())
    names += "," + std::string(kernels->name);
  return names;
}

void force_instruction_set(std::string name) { lebm::force_kernels(name); }

}  // namespace

STABLE_TORCH_LIBRARY(lebm_kernels_native, m) {
  m.def(
      "rows(Tensor y, Tensor decoded, Tensor beta, Tensor? scale, Tensor? log_weight, "
      "Tensor? latent_energy, float? tol, bool slope_y, bool slope_scale, bool slope_beta, bool "
      "mean, bool energy, bool relative_entropy, bool index) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "columns(Tensor grad, Tensor state, Tensor y, Tensor decoded, Tensor beta, Tensor? scale, "
      "Tensor? log_weight, Tensor? latent_energy, float? tol, bool decoded_grad, bool "
      "log_weight_grad, "
      "bool latent_energy_grad) -> (Tensor, Tensor, Tensor)");
  m.def(
      "softmin(Tensor energy, int dim, float beta, Tensor? betas, Tensor? log_weight, bool "
      "largest) -> Tensor");
  m.def(
      "softargmin(Tensor energy, int dim, float beta, Tensor? betas, Tensor? log_weight, bool "
      "largest, Tensor? factor) -> Tensor");
  m.def(
      "softargmin_slopes(Tensor p, Tensor grad_p, int dim, float beta, Tensor? betas, bool "
      "largest) "
      "-> Tensor");
  m.def("instruction_sets() -> str");
  m.def("force_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CPU, m) {
  m.impl("rows", TORCH_BOX(&rows));
  m.impl("columns", TORCH_BOX(&columns));
  m.impl("softmin", TORCH_BOX(&softmin));
  m.impl("softargmin", TORCH_BOX(&softargmin));
  m.impl("softargmin_slopes", TORCH_BOX(&softargmin_slopes));
}

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("force_instruction_set", TORCH_BOX(&force_instruction_set));
}
