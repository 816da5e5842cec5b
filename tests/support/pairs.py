"""Chooses cases that contain every pair of parameter values, instead of all combinations.

A test may have the parameters backend, dtype, dimension and beta. Each value of one parameter then
occurs together with each value of every other parameter in some case. So a fault that needs two
particular values is found. ``LEBM_KERNELS_TEST_ALL=1`` runs all combinations, and finds a fault
that needs three.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

ALL = os.environ.get("LEBM_KERNELS_TEST_ALL") == "1"
"""Whether every combination runs."""

Case = Mapping[str, Hashable]
"""The values of a test's parameters, by the parameters' names."""

_Pair = tuple[tuple[str, Hashable], ...]


def covering(cases: Sequence[Case]) -> list[int]:
    """The indices of cases that have all the pairs of values which occur in ``cases``.

    Greedy: the next case is the one with the most missing pairs; of equal ones, the first.
    """
    missing = [_pairs(case) for case in cases]
    uncovered = set().union(*missing)
    # A case's count of missing pairs only falls: one that is up to date and on top is the largest.
    heap = [(-len(pairs), index) for index, pairs in enumerate(missing)]
    heapq.heapify(heap)
    chosen = []
    while uncovered:
        count, index = heapq.heappop(heap)
        missing[index] &= uncovered
        if len(missing[index]) == -count:
            chosen.append(index)
            uncovered -= missing[index]
        elif missing[index]:
            heapq.heappush(heap, (-len(missing[index]), index))
    return sorted(chosen)


def _pairs(case: Case) -> set[_Pair]:
    """The pairs of values in a case; of a single parameter, its value."""
    values: Iterable[tuple[str, Hashable]] = sorted(case.items(), key=lambda item: item[0])
    return set(combinations(values, min(2, len(case))))
