// The kernels of one instruction set, as its files define them and as dispatch.cpp lists them.
#pragma once

#include "../problem.h"
#include "parallel.h"

namespace lebm {

struct RowKernel {
  void (*f32)(const Problem<float>&, const RowOutputs<float>&, const Parallel&);
  void (*f64)(const Problem<double>&, const RowOutputs<double>&, const Parallel&);

  void operator()(const Problem<float>& problem, const RowOutputs<float>& outputs,
                  const Parallel& parallel) const {
    f32(problem, outputs, parallel);
  }
  void operator()(const Problem<double>& problem, const RowOutputs<double>& outputs,
                  const Parallel& parallel) const {
    f64(problem, outputs, parallel);
  }
};

struct ColumnKernel {
  void (*f32)(const Problem<float>&, const ColumnArguments<float>&, const Parallel&);
  void (*f64)(const Problem<double>&, const ColumnArguments<double>&, const Parallel&);

  void operator()(const Problem<float>& problem, const ColumnArguments<float>& arguments,
                  const Parallel& parallel) const {
    f32(problem, arguments, parallel);
  }
  void operator()(const Problem<double>& problem, const ColumnArguments<double>& arguments,
                  const Parallel& parallel) const {
    f64(problem, arguments, parallel);
  }
};

template <typename T>
struct SoftKernel {
  // The value of each row.
  void (*softmin)(const SoftProblem<T>&, T* value, const Parallel&);
  // The distribution of each row, times the row's factor [A, C] where there are factors.
  void (*softargmin)(const SoftProblem<T>&, const T* factor, T* p, const Parallel&);
  // The gradient of the energies from that of p. The problem's energies are p here.
  void (*slopes)(const SoftProblem<T>&, const T* grad_p, T* grad_energy, const Parallel&);
};

struct SoftKernels {
  SoftKernel<float> f32;
  SoftKernel<double> f64;
};

struct Kernels {
  const char* name;
  const RowKernel& rows;
  const ColumnKernel& columns;
  const SoftKernels& soft;
};

namespace baseline {
extern const RowKernel row_kernel;
extern const ColumnKernel column_kernel;
extern const SoftKernels soft_kernels;
}  // namespace baseline

// Where there are AVX2 and AVX-512.
#if defined(__x86_64__) && !defined(LEBM_BASELINE_ALONE)
#define LEBM_X86 1

namespace avx2 {
extern const RowKernel row_kernel;
extern const ColumnKernel column_kernel;
extern const SoftKernels soft_kernels;
}  // namespace avx2

namespace avx512 {
extern const RowKernel row_kernel;
extern const ColumnKernel column_kernel;
extern const SoftKernels soft_kernels;
}  // namespace avx512
#endif

}  // namespace lebm
