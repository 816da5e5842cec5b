// The native operators on CUDA: tensors in, launches on their device's current stream out. Nothing
// waits for the GPU, and nothing is allocated but by PyTorch, so that calls can be captured in a
// graph. The schemas stand in bindings.cpp.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "instances.cuh"

namespace {

using namespace lebm;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "lebm_kernels: ", what, ": ", cudaGetErrorString(error));
}

// The device of a tensor, made the current one, and its current stream.
class Place {
 public:
  explicit Place(const Tensor& x) : index(x.get_device_index()), guard_(index) {
    void* current = nullptr;
    require(aoti_torch_get_current_cuda_stream(index, &current), "asking for the current stream");
    stream = static_cast<cudaStream_t>(current);
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index),
          "cudaDeviceGetAttribute");
  }

  Tensor memory(int64_t doubles) const {
    return empty({doubles}, ScalarType::Double, aoti_torch_device_type_cuda(), index);
  }

  const int32_t index;
  cudaStream_t stream;
  int multiprocessors;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

Seven rows(const Tensor& y, const Tensor& decoded, const Tensor& beta,
           const std::optional<Tensor>& scale, const std::optional<Tensor>& log_weight,
           const std::optional<Tensor>& latent_energy, std::optional<double> tol, bool slope_y,
           bool slope_scale, bool slope_beta, bool mean, bool index) {
  const Place place(y);
  const Seven out = row_outputs(y, aoti_torch_device_type_cuda(), place.index, slope_y, slope_scale,
                                slope_beta, mean, index);
  if (std::get<0>(out).numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto p = problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol);
    const auto outputs = pointers<T>(out, slope_y, slope_scale, slope_beta, mean, index);
    const Tensor workspace =
        place.memory(lebm::cuda::rows_workspace(p, outputs, place.multiprocessors));
    lebm::cuda::launch_rows(p, outputs, data<double>(workspace), place.multiprocessors,
                            place.stream, lebm::cuda::AllDimensions{});
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  check(cudaGetLastError(), "the row pass was not launched");
  return out;
}

Three columns(const Tensor& grad_any, const Tensor& state_any, const Tensor& y,
              const Tensor& decoded, const Tensor& beta, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& log_weight, const std::optional<Tensor>& latent_energy,
              std::optional<double> tol, bool want_decoded, bool want_log_weight,
              bool want_latent_energy) {
  const Place place(y);
  const Tensor grad = dense(grad_any), state = dense(state_any);
  const Three out = column_outputs(grad, decoded, aoti_torch_device_type_cuda(), place.index,
                                   want_decoded, want_log_weight, want_latent_energy);
  if (decoded.numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto p = problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol);
    const auto arguments =
        pointers<T>(grad, state, out, want_decoded, want_log_weight, want_latent_energy);
    if (p.M == 0) {
      const size_t latents = size_t(p.B * p.N) * sizeof(T);
      auto clear = [&](T* to, size_t bytes) {
        if (to) check(cudaMemsetAsync(to, 0, bytes, place.stream), "cudaMemsetAsync");
      };
      clear(arguments.grad_decoded, latents * size_t(p.D));
      clear(arguments.grad_log_weight, latents);
      clear(arguments.grad_latent_energy, latents);
      return;
    }
    const Tensor workspace =
        place.memory(lebm::cuda::columns_workspace(p, arguments, place.multiprocessors));
    lebm::cuda::launch_columns(p, arguments, data<double>(workspace), place.multiprocessors,
                               place.stream, lebm::cuda::AllDimensions{});
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  check(cudaGetLastError(), "the column pass was not launched");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CUDA, m) {
  m.impl("rows", TORCH_BOX(&rows));
  m.impl("columns", TORCH_BOX(&columns));
}
