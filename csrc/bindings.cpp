// The native operators on CPU: tensors in, kernels' plain structures out. Only PyTorch's stable ABI
// is used, so that one binary serves every PyTorch from 2.10 on.
//
//   rows:    F, state and, where wanted, slopes, mean and index (else empty)
//   columns: the latent-side gradients, where wanted (else empty)
//
// Arguments are canonical (see lebm_kernels/backends/contract.py): checked, broadcast, [B, M, D].
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/problem.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
lebm::View<T> view(const Tensor& x) {
  lebm::View<T> result;
  result.data = static_cast<const T*>(x.const_data_ptr());
  for (int64_t i = 0; i < x.dim(); ++i) result.stride[i] = x.stride(i);
  return result;
}

template <typename T>
lebm::View<T> view(const std::optional<Tensor>& x) {
  return x ? view<T>(*x) : lebm::View<T>{};
}

template <typename T>
lebm::Problem<T> problem(const Tensor& y, const Tensor& decoded, const Tensor& beta,
                         const std::optional<Tensor>& scale,
                         const std::optional<Tensor>& log_weight,
                         const std::optional<Tensor>& latent_energy,
                         const std::optional<double>& tol) {
  return {y.size(0),          y.size(1),           decoded.size(1),       y.size(2),
          tol.value_or(-1.0), view<T>(y),          view<T>(decoded),      view<T>(beta),
          view<T>(scale),     view<T>(log_weight), view<T>(latent_energy)};
}

void run_on_pool(int64_t count, lebm::Parallel::Body body, void* context) {
  if (count == 0) return;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

lebm::Parallel pool() { return {run_on_pool, int64_t(torch::stable::get_num_threads())}; }

Tensor output(bool wanted, const std::vector<int64_t>& size, const Tensor& like,
              std::optional<ScalarType> dtype = std::nullopt) {
  const std::vector<int64_t> none = {0};
  return torch::stable::new_empty(like, wanted ? size : none, dtype);
}

template <typename T>
T* data(const Tensor& x) {
  return x.numel() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
void run_rows(const lebm::Problem<T>& p, Seven& out) {
  auto& [free_energy, state, slope_y, slope_scale, slope_beta, mean, index] = out;
  const lebm::RowOutputs<T> outputs = {data<T>(free_energy), data<double>(state), data<T>(slope_y),
                                       data<T>(slope_scale), data<T>(slope_beta), data<T>(mean),
                                       data<int64_t>(index)};
  const lebm::Kernels& kernels = lebm::kernels();
  if constexpr (sizeof(T) == 4) {
    kernels.rows_f32(p, outputs, pool());
  } else {
    kernels.rows_f64(p, outputs, pool());
  }
}

Seven rows(const Tensor& y, const Tensor& decoded, const Tensor& beta,
           const std::optional<Tensor>& scale, const std::optional<Tensor>& log_weight,
           const std::optional<Tensor>& latent_energy, std::optional<double> tol, bool slope_y,
           bool slope_scale, bool slope_beta, bool mean, bool index) {
  const int64_t B = y.size(0), M = y.size(1), D = y.size(2);
  Seven out = {output(true, {B, M}, y),
               output(true, {B, M, 3}, y, ScalarType::Double),
               output(slope_y, {B, M, D}, y),
               output(slope_scale, {B, M, D}, y),
               output(slope_beta, {B, M}, y),
               output(mean, {B, M, D}, y),
               output(index, {B, M}, y, ScalarType::Long)};
  if (B == 0 || M == 0) return out;
  if (y.scalar_type() == ScalarType::Double) {
    run_rows(problem<double>(y, decoded, beta, scale, log_weight, latent_energy, tol), out);
  } else {
    run_rows(problem<float>(y, decoded, beta, scale, log_weight, latent_energy, tol), out);
  }
  return out;
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
void run_columns(const lebm::Problem<T>& p, const Tensor& grad, const Tensor& state, Three& out) {
  const lebm::ColumnArguments<T> arguments = {static_cast<const T*>(grad.const_data_ptr()),
                                              static_cast<const double*>(state.const_data_ptr()),
                                              data<T>(std::get<0>(out)), data<T>(std::get<1>(out)),
                                              data<T>(std::get<2>(out))};
  const lebm::Kernels& kernels = lebm::kernels();
  if constexpr (sizeof(T) == 4) {
    kernels.columns_f32(p, arguments, pool());
  } else {
    kernels.columns_f64(p, arguments, pool());
  }
}

Three columns(const Tensor& grad_any, const Tensor& state_any, const Tensor& y,
              const Tensor& decoded, const Tensor& beta, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& log_weight, const std::optional<Tensor>& latent_energy,
              std::optional<double> tol, bool want_decoded, bool want_log_weight,
              bool want_latent_energy) {
  const Tensor grad = torch::stable::contiguous(grad_any);
  const Tensor state = torch::stable::contiguous(state_any);
  const int64_t B = decoded.size(0), N = decoded.size(1), D = decoded.size(2);
  Three out = {output(want_decoded, {B, N, D}, y), output(want_log_weight, {B, N}, y),
               output(want_latent_energy, {B, N}, y)};
  if (B == 0) return out;
  if (y.scalar_type() == ScalarType::Double) {
    run_columns(problem<double>(y, decoded, beta, scale, log_weight, latent_energy, tol), grad,
                state, out);
  } else {
    run_columns(problem<float>(y, decoded, beta, scale, log_weight, latent_energy, tol), grad,
                state, out);
  }
  return out;
}

// The instruction sets that can run, best first, the one in use before all: "avx2,avx2,baseline".
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
      "mean, "
      "bool index) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "columns(Tensor grad, Tensor state, Tensor y, Tensor decoded, Tensor beta, Tensor? scale, "
      "Tensor? log_weight, Tensor? latent_energy, float? tol, bool decoded_grad, bool "
      "log_weight_grad, "
      "bool latent_energy_grad) -> (Tensor, Tensor, Tensor)");
  m.def("instruction_sets() -> str");
  m.def("force_instruction_set(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CPU, m) {
  m.impl("rows", TORCH_BOX(&rows));
  m.impl("columns", TORCH_BOX(&columns));
}

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("force_instruction_set", TORCH_BOX(&force_instruction_set));
}
