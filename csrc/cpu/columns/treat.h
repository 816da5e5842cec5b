// A chunk of queries in one regime against a block of latents, pair by pair: chooses the loop that
// the arguments need. See task.h for the formulas.
#pragma once

#include "pairs.h"
#include "wide.h"

LEBM_BEGIN_TARGET

template <typename T, int kD, Regime kRegime>
static void treat(const ColumnTask<T>& task, const Block<T>& block, int64_t first, int64_t last,
                  T* scratch, const ColumnSums<T>& sums) {
  auto call = [&](auto weighted, auto wants_l, auto has_scale) {
    if constexpr (kD > 0 && !kSpecialised) {
      narrow_block<T, kD, kRegime, true, true, true>(task, block, first, last, sums);
    } else if constexpr (kD > 0) {
      narrow_block<T, kD, kRegime, weighted.value, wants_l.value, has_scale.value>(
          task, block, first, last, sums);
    } else {
      wide_block<T, kRegime, weighted.value, wants_l.value, has_scale.value>(task, block, first,
                                                                             last, scratch, sums);
    }
  };
  auto with_scale = [&](auto weighted, auto wants_l) {
    task.has_scale ? call(weighted, wants_l, Yes{}) : call(weighted, wants_l, No{});
  };
  if constexpr (kRegime == kCold) {  // dF/dl = 0
    task.grid->weighted ? with_scale(Yes{}, No{}) : with_scale(No{}, No{});
  } else if constexpr (kRegime != kWarm) {  // these regimes differ from kWarm in grad_l alone
    with_scale(No{}, Yes{});
  } else if (task.grid->weighted) {
    task.wants_l ? with_scale(Yes{}, Yes{}) : with_scale(Yes{}, No{});
  } else {
    with_scale(No{}, No{});  // without log-weights there is no grad_l
  }
}

LEBM_END_TARGET
