// Converts tensors to the kernels' plain structures and allocates outputs, with PyTorch's stable
// ABI alone.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace lebm {

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

// The sizes of x, the last `count` of them replaced by `tail`.
inline std::vector<int64_t> sizes(const Tensor& x, int64_t count,
                                  std::initializer_list<int64_t> tail) {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < x.dim() - count; ++i) result.push_back(x.size(i));
  result.insert(result.end(), tail);
  return result;
}

// Throws if a call of PyTorch's C interface failed. PyTorch's own macro for this has one name
// in 2.10 and another later.
inline void require(AOTITorchError error, const char* what) {
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "lebm_kernels: ", what, " failed");
}

// Memory on a device. torch::stable::new_empty goes through the dispatcher, which takes as long as
// a small problem.
inline Tensor empty(const std::vector<int64_t>& size, ScalarType dtype, int32_t device_type,
                    int32_t device_index) {
  std::vector<int64_t> stride(size.size());
  int64_t step = 1;
  for (size_t i = size.size(); i-- > 0; step *= size[i]) stride[i] = step;
  const int32_t code = dtype == ScalarType::Long     ? aoti_torch_dtype_int64()
                       : dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                                                     : aoti_torch_dtype_float32();
  AtenTensorHandle handle;
  require(aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(), code,
                                   device_type, device_index, &handle),
          "allocating memory");
  return Tensor(handle);
}

template <typename T>
T* data(const Tensor& x, bool wanted = true) {
  return wanted ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

template <typename T>
const T* constant(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Which of the optional outputs of `rows` are wanted: RowWants of backends/contract.py.
struct RowWants {
  bool slope_y, slope_scale, slope_beta, mean, energy, relative_entropy, index;
};

// The results of `rows`: F, the state and the optional outputs; of `columns`: the latent-side
// gradients.
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// The outputs of `rows` for queries y; an output that is not wanted is another tensor, to be
// ignored.
inline Nine row_outputs(const Tensor& y, int32_t device_type, int32_t device_index,
                        const RowWants& want) {
  const std::vector<int64_t> scalar = sizes(y, 1, {}), vector = sizes(y, 0, {});
  const ScalarType dtype = y.scalar_type();
  auto make = [&](const std::vector<int64_t>& size, ScalarType of) {
    return empty(size, of, device_type, device_index);
  };
  const Tensor value = make(scalar, dtype);
  auto of = [&](bool wanted, const std::vector<int64_t>& size, ScalarType of_dtype) {
    return wanted ? make(size, of_dtype) : value;
  };
  return {value,
          make(sizes(y, 1, {lebm::kStateSize}), ScalarType::Double),
          of(want.slope_y, vector, dtype),
          of(want.slope_scale, vector, dtype),
          of(want.slope_beta, scalar, ScalarType::Double),
          of(want.mean, vector, dtype),
          of(want.energy, scalar, dtype),
          of(want.relative_entropy, scalar, dtype),
          of(want.index, scalar, ScalarType::Long)};
}

template <typename T>
lebm::RowOutputs<T> pointers(const Nine& out, const RowWants& want) {
  return {data<T>(std::get<0>(out)),
          data<double>(std::get<1>(out)),
          data<T>(std::get<2>(out), want.slope_y),
          data<T>(std::get<3>(out), want.slope_scale),
          data<double>(std::get<4>(out), want.slope_beta),
          data<T>(std::get<5>(out), want.mean),
          data<T>(std::get<6>(out), want.energy),
          data<T>(std::get<7>(out), want.relative_entropy),
          data<int64_t>(std::get<8>(out), want.index)};
}

// The same for `columns`.
inline Three column_outputs(const Tensor& grad, const Tensor& decoded, int32_t device_type,
                            int32_t device_index, bool want_decoded, bool want_log_weight,
                            bool want_latent_energy) {
  auto of = [&](bool wanted, int64_t count) {
    return wanted
               ? empty(sizes(decoded, count, {}), decoded.scalar_type(), device_type, device_index)
               : grad;
  };
  return {of(want_decoded, 0), of(want_log_weight, 1), of(want_latent_energy, 1)};
}

template <typename T>
lebm::ColumnArguments<T> pointers(const Tensor& grad, const Tensor& state, const Three& out,
                                  bool want_decoded, bool want_log_weight,
                                  bool want_latent_energy) {
  return {static_cast<const T*>(grad.const_data_ptr()),
          static_cast<const double*>(state.const_data_ptr()),
          data<T>(std::get<0>(out), want_decoded), data<T>(std::get<1>(out), want_log_weight),
          data<T>(std::get<2>(out), want_latent_energy)};
}

}  // namespace lebm
