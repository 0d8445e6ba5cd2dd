"""The order of sections from their likeness to each other alone: the ones that are most alike lie side by side.

Each likeness is taken between what is usual for its two sections (their median, chance) and the best that they reach, so that a
pale or torn section counts as much as another. The leaves of a clustering tree in their best order (Bar-Joseph et al. 2001) are
the start; reversing runs and moving short ones shortens the path through all sections. Which end comes first no pair can tell.
What was measured, and what was tried, is in ``docs/decisions/order.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

Float = NDArray[np.float64]
Order = NDArray[np.int_]
NEXT_WEIGHT = 0.5  # of the distance to the one after the next, beside that to the next
LONGEST_RUN = 3
MOST_SWEEPS = 60
BEST = 2  # pairs that say how alike a section gets to any
FAR_SHARE, FAR_QUANTILE = 0.25, 0.95


def distances(likeness: Float) -> Float:
    """1 where two sections are as alike as they usually are to others, 0 where as alike as it gets; (n, n), NaN is unlike."""
    n = len(likeness)
    known = np.where(np.isfinite(likeness), likeness, np.nanmin(likeness))
    others = np.sort(known[~np.eye(n, dtype=bool)].reshape(n, n - 1), axis=1)
    usual, best = np.median(others, axis=1), others[:, -BEST:].mean(axis=1)
    span = np.maximum(best - usual, 1e-6)
    out = 1 - (known - (usual[:, None] + usual) / 2) / np.sqrt(span[:, None] * span)
    np.fill_diagonal(out, 0.0)
    return np.asarray((out + out.T) / 2)


def by_tree(distance: Float) -> Order:
    """The leaves of an average-linkage tree in the order whose neighbours are closest."""
    pairs = squareform(np.maximum(distance, 0), checks=False)
    return np.asarray(leaves_list(optimal_leaf_ordering(linkage(pairs, "average"), pairs)))


def length(order: Order, distance: Float) -> float:
    """Of the path through all in ``order``: each to its next and, by ``NEXT_WEIGHT``, to the one after."""
    near = distance[order[:-1], order[1:]].sum()
    return float(near + NEXT_WEIGHT * distance[order[:-2], order[2:]].sum())


def improved(order: Order, distance: Float) -> Order:
    """The order after reversing runs, and moving short ones elsewhere either way round, while that shortens the path."""
    best = length(order, distance)
    for _ in range(MOST_SWEEPS):
        options = ((length(o, distance), o) for o in _changes(order))
        shorter = min(options, key=lambda o: o[0], default=(best, order))
        if shorter[0] >= best - 1e-9:
            break
        best, order = shorter
    return order


def _changes(order: Order) -> Iterator[Order]:
    n = len(order)
    for i in range(n):
        for j in range(i + 2, n + 1):
            yield np.concatenate([order[:i], order[i:j][::-1], order[j:]])
    for size in range(1, LONGEST_RUN + 1):
        for i in range(n - size + 1):
            run, rest = order[i : i + size], np.concatenate([order[:i], order[i + size :]])
            for k in range(len(rest) + 1):
                if k != i:
                    yield np.concatenate([rest[:k], run, rest[k:]])
                    yield np.concatenate([rest[:k], run[::-1], rest[k:]])


def seriate(likeness: Float) -> Order:
    """The order of n sections from their (n, n) likeness; its direction is that in which their numbers mostly rise."""
    if len(likeness) < 3:
        return np.arange(len(likeness))
    distance = distances(likeness)
    order = improved(by_tree(distance), distance)
    rises = np.corrcoef(np.arange(len(order)), order)[0, 1]
    return order if rises >= 0 else order[::-1]


def weak_links(order: Order, likeness: Float) -> list[int]:
    """The places n at which the n-th section of the order and the next are no more alike than sections far apart are."""
    far = max(int(FAR_SHARE * len(order)), 2)
    apart = [likeness[a, b] for n, a in enumerate(order) for b in order[n + far :]]
    if not apart:
        return []
    limit = float(np.nanquantile(apart, FAR_QUANTILE))
    return [n for n, (a, b) in enumerate(pairwise(order)) if not likeness[a, b] > limit]
