// The native operators on CUDA: they take tensors and launch kernels on the current stream of the
// tensors' device. The host never waits for the GPU, and PyTorch allocates all memory, so that
// calls can be captured in a CUDA graph. bindings.cpp has the schemas.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "columns.cuh"
#include "dimensions.cuh"
#include "instances/instances.cuh"
#include "rows.cuh"

namespace {

using namespace lebm;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "lebm_kernels: ", what, ": ", cudaGetErrorString(error));
}

// Makes the device of a tensor the current one. Has its current stream and its size.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& x) : index(x.get_device_index()), guard_(index) {
    void* current = nullptr;
    require(aoti_torch_get_current_cuda_stream(index, &current), "asking for the current stream");
    stream = static_cast<cudaStream_t>(current);
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index),
          "cudaDeviceGetAttribute");
  }

  Tensor workspace(int64_t doubles) const {
    return empty({doubles}, ScalarType::Double, aoti_torch_device_type_cuda(), index);
  }

  const int32_t index;
  cudaStream_t stream;
  int multiprocessors;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

Nine rows(const Tensor& y, const Tensor& decoded, const Tensor& beta,
          const std::optional<Tensor>& scale, const std::optional<Tensor>& log_weight,
          const std::optional<Tensor>& latent_energy, std::optional<double> tol, bool slope_y,
          bool slope_scale, bool slope_beta, bool mean, bool energy, bool relative_entropy,
          bool index) {
  const RowWants want{slope_y, slope_scale, slope_beta, mean, energy, relative_entropy, index};
  const CurrentDevice device(y);
  const Nine out = row_outputs(y, aoti_torch_device_type_cuda(), device.index, want);
  if (std::get<0>(out).numel() == 0) return out;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto p = problem<T>(y, decoded, beta, scale, log_weight, latent_energy, tol);
    const auto outputs = pointers<T>(out, want);
    const Tensor workspace =
        device.workspace(lebm::cuda::rows_workspace(p, outputs, device.multiprocessors));
    lebm::cuda::launch_rows(p, outputs, data<double>(workspace), device.multiprocessors,
                            device.stream, lebm::cuda::AllDimensions{});
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  check(cudaGetLastError(), "launching the row pass");
  return out;
}

Three columns(const Tensor& grad_any, const Tensor& state_any, const Tensor& y,
              const Tensor& decoded, const Tensor& beta, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& log_weight, const std::optional<Tensor>& latent_energy,
              std::optional<double> tol, bool want_decoded, bool want_log_weight,
              bool want_latent_energy) {
  const CurrentDevice device(y);
  const Tensor grad = dense(grad_any), state = dense(state_any);
  const Three out = column_outputs(grad, decoded, aoti_torch_device_type_cuda(), device.index,
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
        if (to) check(cudaMemsetAsync(to, 0, bytes, device.stream), "cudaMemsetAsync");
      };
      clear(arguments.grad_decoded, latents * size_t(p.D));
      clear(arguments.grad_log_weight, latents);
      clear(arguments.grad_latent_energy, latents);
      return;
    }
    const Tensor workspace =
        device.workspace(lebm::cuda::columns_workspace(p, arguments, device.multiprocessors));
    lebm::cuda::launch_columns(p, arguments, data<double>(workspace), device.multiprocessors,
                               device.stream, lebm::cuda::AllDimensions{});
  };
  y.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  check(cudaGetLastError(), "launching the column pass");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lebm_kernels_native, CUDA, m) {
  m.impl("rows", TORCH_BOX(&rows));
  m.impl("columns", TORCH_BOX(&columns));
}
