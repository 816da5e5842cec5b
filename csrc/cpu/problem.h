// What the CPU's kernels need beside the problem: threads, memory, and the table of instruction
// sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "../problem.h"

namespace lebm {

// Runs body(context, i) for i in [0, count) on the caller's thread pool. Type-erased so that no
// function of the standard library or of PyTorch is instantiated inside an instruction set's
// region.
struct Parallel {
  using Body = void (*)(void* context, int64_t i);
  void (*run)(int64_t count, Body body, void* context);
  int64_t threads;
};

// The calling thread alone.
Parallel on_this_thread();

// Scratch memory aligned to a cache line. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_;
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  void (*rows_f32)(const Problem<float>&, const RowOutputs<float>&, const Parallel&);
  void (*rows_f64)(const Problem<double>&, const RowOutputs<double>&, const Parallel&);
  void (*columns_f32)(const Problem<float>&, const ColumnArguments<float>&, const Parallel&);
  void (*columns_f64)(const Problem<double>&, const ColumnArguments<double>&, const Parallel&);
};

}  // namespace lebm
