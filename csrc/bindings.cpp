// The native operators on CPU: tensors in, kernels' plain structures out. Only PyTorch's stable ABI
// is used, so that one binary serves every PyTorch from 2.10 on.
//
//   rows:    F, state and, where wanted, slopes, mean and index
//   columns: the latent-side gradients, where wanted
//
// In the place of what is not wanted stands another tensor, without meaning.
//
// Arguments are canonical (see lebm_kernels/backends/contract.py): checked, [B, M, D]. Beyond that
// contract, B may be missing from all of them (outputs then lack it too), and beta, scale,
// log_weight and latent_energy broadcast: what PyTorch would do to the tensors costs more than a
// small problem.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/problem.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor whose dimensions are the last of `rank`.
template <typename T>
lebm::View<T> view(const Tensor& x, int64_t rank) {
  lebm::View<T> result;
  result.data = static_cast<const T*>(x.const_data_ptr());
  const int64_t missing = rank - x.dim();
  for (int64_t i = 0; i < x.dim(); ++i)
    result.stride[missing + i] = x.size(i) == 1 ? 0 : x.stride(i);
  return result;
}

template <typename T>
lebm::View<T> view(const std::optional<Tensor>& x, int64_t rank) {
  return x ? view<T>(*x, rank) : lebm::View<T>{};
}

template <typename T>
lebm::Problem<T> problem(const Tensor& y, const Tensor& decoded, const Tensor& beta,
                         const std::optional<Tensor>& scale,
                         const std::optional<Tensor>& log_weight,
                         const std::optional<Tensor>& latent_energy,
                         const std::optional<double>& tol) {
  const int64_t B = y.dim() == 3 ? y.size(0) : 1;
  return {B,
          y.size(-2),
          decoded.size(-2),
          y.size(-1),
          tol.value_or(-1.0),
          view<T>(y, 3),
          view<T>(decoded, 3),
          view<T>(beta, 2),
          view<T>(scale, 3),
          view<T>(log_weight, 2),
          view<T>(latent_energy, 2)};
}

void run_on_pool(int64_t count, lebm::Parallel::Body body, void* context) {
  if (count == 0) return;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

// Waking the pool takes longer than this many products of a pair.
constexpr int64_t kFewProducts = 40000;

template <typename T>
lebm::Parallel pool(const lebm::Problem<T>& p) {
  if (double(p.B) * double(p.M) * double(p.N) * double(p.D) < kFewProducts)
    return lebm::on_this_thread();
  return {run_on_pool, int64_t(torch::stable::get_num_threads())};
}

// The sizes of x, the last `count` of them replaced by `tail`.
std::vector<int64_t> sizes(const Tensor& x, int64_t count, std::initializer_list<int64_t> tail) {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < x.dim() - count; ++i) result.push_back(x.size(i));
  result.insert(result.end(), tail);
  return result;
}

// Memory on the CPU. Through the dispatcher, as torch::stable::new_empty goes, it takes as long as
// a small problem.
Tensor empty(const std::vector<int64_t>& size, ScalarType dtype) {
  std::vector<int64_t> stride(size.size());
  int64_t step = 1;
  for (size_t i = size.size(); i-- > 0; step *= size[i]) stride[i] = step;
  const int32_t code = dtype == ScalarType::Long     ? aoti_torch_dtype_int64()
                       : dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                                                     : aoti_torch_dtype_float32();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(size.size()), size.data(),
                                                         stride.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <typename T>
T* data(const Tensor& x, bool wanted = true) {
  return wanted ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
void run_rows(const lebm::Problem<T>& p, const lebm::RowOutputs<T>& outputs) {
  const lebm::Kernels& kernels = lebm::kernels();
  if constexpr (sizeof(T) == 4) {
    kernels.rows_f32(p, outputs, pool(p));
  } else {
    kernels.rows_f64(p, outputs, pool(p));
  }
}

Seven rows(const Tensor& y, const Tensor& decoded, const Tensor& beta,
           const std::optional<Tensor>& scale, const std::optional<Tensor>& log_weight,
           const std::optional<Tensor>& latent_energy, std::optional<double> tol, bool slope_y,
           bool slope_scale, bool slope_beta, bool mean, bool index) {
  const std::vector<int64_t> scalar = sizes(y, 1, {}), vector = sizes(y, 0, {});
  const ScalarType dtype = y.scalar_type();
  const Tensor value = empty(scalar, dtype);
  auto of = [&](bool wanted, const std::vector<int64_t>& size) {
    return wanted ? empty(size, dtype) : value;
  };
  Seven out = {value,
               empty(sizes(y, 1, {3}), ScalarType::Double),
               of(slope_y, vector),
               of(slope_scale, vector),
               of(slope_beta, scalar),
               of(mean, vector),
               index ? empty(scalar, ScalarType::Long) : value};
  if (value.numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const lebm::RowOutputs<T> outputs = {data<T>(value),
                                         data<double>(std::get<1>(out)),
                                         data<T>(std::get<2>(out), slope_y),
                                         data<T>(std::get<3>(out), slope_scale),
                                         data<T>(std::get<4>(out), slope_beta),
                                         data<T>(std::get<5>(out), mean),
                                         data<int64_t>(std::get<6>(out), index)};
    run_rows(problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol), outputs);
  };
  dtype == ScalarType::Double ? run(0.0) : run(0.0f);
  return out;
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
void run_columns(const lebm::Problem<T>& p, const lebm::ColumnArguments<T>& arguments) {
  const lebm::Kernels& kernels = lebm::kernels();
  if constexpr (sizeof(T) == 4) {
    kernels.columns_f32(p, arguments, pool(p));
  } else {
    kernels.columns_f64(p, arguments, pool(p));
  }
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Three columns(const Tensor& grad_any, const Tensor& state_any, const Tensor& y,
              const Tensor& decoded, const Tensor& beta, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& log_weight, const std::optional<Tensor>& latent_energy,
              std::optional<double> tol, bool want_decoded, bool want_log_weight,
              bool want_latent_energy) {
  const Tensor grad = dense(grad_any), state = dense(state_any);
  auto of = [&](bool wanted, int64_t count) {
    return wanted ? empty(sizes(decoded, count, {}), y.scalar_type()) : grad;
  };
  Three out = {of(want_decoded, 0), of(want_log_weight, 1), of(want_latent_energy, 1)};
  if (decoded.numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const lebm::ColumnArguments<T> arguments = {
        static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const double*>(state.const_data_ptr()), data<T>(std::get<0>(out), want_decoded),
        data<T>(std::get<1>(out), want_log_weight), data<T>(std::get<2>(out), want_latent_energy)};
    run_columns(problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol), arguments);
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
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
