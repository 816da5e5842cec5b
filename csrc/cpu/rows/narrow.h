// The row pass over a tile of queries at D <= 4: with log-weights one energy at a time, otherwise
// each block as plan.h decides.
//
//     y, s [count][D]; latents in blocks [first_block, last_block); sums [count], vectors
//     [count][D]
#pragma once

#include "../grid/energy.h"
#include "../series/layers.h"
#include "../series/rows.h"
#include "block.h"
#include "centred.h"
#include "differences.h"
#include "nearby.h"

LEBM_BEGIN_TARGET

// Energies one by one, as log-weights need them. y and s of the queries lie in consecutive rows.
template <typename T, int kD, Level kLevel>
static void pass_one_by_one(const Grid<T>& grid, int64_t first_block, int64_t last_block,
                            const Query<T>* queries, int64_t count, T* energy, Sums<T>* sums,
                            Vectors* vectors) {
  for (int64_t i = first_block; i < last_block; ++i) {
    const Block<T> block = grid.at(i);
    for (int64_t q = 0; q < count; ++q) {
      const T smallest = energies<T, kD>(block, grid.block, queries[q].y, queries[q].s, energy);
      BlockSums<T> unused;
      add_block<T, kD, kLevel>(grid, block, queries[q], smallest, energy, sums[q], vectors[q],
                               unused);
    }
  }
}

// Without log-weights. `exact`: m and its index must be those of the least energy itself.
template <typename T, int kD, Level kLevel>
struct NarrowTile {
  const Grid<T>& packed;  // layer 0, with this thread's scratch memory
  const Layers<T>& layers;
  int layer;                        // the first to visit
  int64_t first_block, last_block;  // of layer 0, whole ones of `layer`
  double log2_tol;
  bool exact;
  const Query<T>* queries;
  int64_t count;
  T* energy;
  Sums<T>* sums;
  Vectors* vectors;
  Plan<T, kD> plan;

  // Block i of layer k against the `active` queries; where no series can be used, the blocks below
  // it.
  void visit(int k, int64_t i, const int64_t* active, int64_t num_active) {
    const Grid<T>& grid = layers.grid[k];
    const BlockSeries<T>& series = layers.series[k];
    plan_block(grid, i, log2_tol, exact, series.coefficients ? &series : nullptr, queries, sums,
               plan, active, num_active);
    int64_t summed[kNarrowTile], others[kNarrowTile], about_centre[kNarrowTile];
    int64_t in_series = 0, left = 0, centred = 0;
    for (int64_t j = 0; j < num_active; ++j) {
      const int64_t q = active[j];
      const bool in_pairs = plan.how[q] == kCentred || plan.how[q] == kFloored;
      if (plan.how[q] == kSeries || (k == 0 && in_pairs)) about_centre[centred++] = q;
      if (plan.how[q] == kPruned) {
        prune(queries[q].regime, grid.block_weight[i], sums[q]);
      } else if (plan.how[q] == kSeries) {
        summed[in_series++] = q;
      } else {
        others[left++] = q;
      }
    }
    if (centred) prepare_sums(plan, about_centre, centred);
    if constexpr (kD <= 2) {
      if (in_series)
        series_block<T, kD, kLevel>(grid, i, series, plan, summed, in_series, queries, sums,
                                    vectors);
    }
    if (left == 0) return;
    if (k == 0) return sum_pairs(i, others, left);
    const Grid<T>& below = layers.grid[k - 1];
    const int64_t end = (i + 1) * kFan < below.num_blocks ? (i + 1) * kFan : below.num_blocks;
    for (int64_t child = i * kFan; child < end; ++child) visit(k - 1, child, others, left);
  }

  // Packed block i, as planned.
  void sum_pairs(int64_t i, const int64_t* active, int64_t num_active) {
    const Block<T> block = packed.at(i);
    int64_t normal[kNarrowTile], floored[kNarrowTile], small[kNarrowTile];
    int64_t normals = 0, floors = 0, smalls = 0;
    for (int64_t j = 0; j < num_active; ++j) {
      const int64_t q = active[j];
      if (plan.how[q] == kFloored) {
        floored[floors++] = q;
        continue;
      }
      if (plan.how[q] == kCentred) {
        if (queries[q].regime == kSmall)
          small[smalls++] = q;
        else
          normal[normals++] = q;
        continue;
      }
      sum_one_by_one(i, block, q);
    }
    auto sum_centred = [&](auto is_small, const int64_t* list, int64_t count_, bool floor) {
      if (count_ == 0) return;
      centred_block<T, kD, kLevel, is_small.value>(packed, block, plan, list, count_, floor,
                                                   queries, sums, vectors);
    };
    sum_centred(No{}, normal, normals, false);
    sum_centred(No{}, floored, floors, true);
    sum_centred(Yes{}, small, smalls, false);
  }

  // Packed block i for query q, from energies.
  void sum_one_by_one(int64_t i, const Block<T>& block, int64_t q) {
    const bool floor = !packed.whole[i] || packed.r_floor[i] != packed.r_top[i];
    // Energies and their exponents are finite.
    const bool small =
        plan.fall[q] < T(1e30) && plan.rate[q] < T(1e30) && sums[q].shift < kAbsent<T>;
    if (queries[q].regime == kWarm && !exact && small && !vectors[q].mean) {
      const bool unbounded = !floor && plan.start[q] - plan.fall[q] > Exponent<T>::lowest;
      return add_differences<T, kD, kLevel>(packed, block, plan.scaled, unbounded, queries[q],
                                            sums[q], vectors[q], plan.upper[q]);
    }
    const T smallest = energies<T, kD>(block, packed.block, queries[q].y, queries[q].s, energy);
    BlockSums<T> unused;
    add_block<T, kD, kLevel>(packed, block, queries[q], smallest, energy, sums[q], vectors[q],
                             unused);
    plan.upper[q] = smallest < plan.upper[q] ? smallest : plan.upper[q];
  }

  void run() {
    const Grid<T>& grid = layers.grid[layer];
    const int64_t leaves = grid.block / packed.block;
    const int64_t first = first_block / leaves, last = (last_block + leaves - 1) / leaves;
    begin_plan(plan, queries, count);
    Scratch memory(sizeof(int64_t) * size_t(last - first));
    auto* blocks = static_cast<int64_t*>(memory.get());
    const int64_t chosen =
        choose_blocks<T, kD>(grid, first, last, log2_tol, plan, queries, count, blocks);
    for (int64_t next = 0; next < chosen; ++next) {
      const int64_t end = (blocks[next] + 1) * leaves;
      bound(packed, blocks[next] * leaves, end < packed.num_blocks ? end : packed.num_blocks, plan,
            count);
    }
    int64_t all[kNarrowTile];
    for (int64_t q = 0; q < count; ++q) {
      all[q] = q;
      const bool sums_exponentials = queries[q].regime == kWarm || queries[q].regime == kSmall;
      if (!exact && sums_exponentials && !is_finite(sums[q].shift) &&
          plan.start_shift[q] < kAbsent<T>)
        sums[q].shift = plan.start_shift[q];
    }
    double pruned_weight = 0;
    int64_t next = 0;
    for (int64_t i = first; i < last; ++i) {
      if (next < chosen && blocks[next] == i) {
        ++next;
        visit(layer, i, all, count);
      } else {
        pruned_weight += grid.block_weight[i];
      }
    }
    for (int64_t q = 0; pruned_weight != 0 && q < count; ++q)
      prune(queries[q].regime, pruned_weight, sums[q]);
  }
};

LEBM_END_TARGET
