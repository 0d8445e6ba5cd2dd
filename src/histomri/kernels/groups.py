"""Sections on a slide: the pieces of a tissue mask gathered into sections, and put into reading order.

A section may consist of several pieces (hemispheres, cerebellum, fragments). With the number of sections known, pieces are
merged until so many groups are left, the pair with the smallest gap for its size first; without it, where the gaps jump.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from histomri.core.section import READING_ORDERS
from histomri.kernels.pieces import Bool, pieces_of

Box = tuple[int, int, int, int]  # y, x, height, width
DEBRIS_SHARE = 0.04  # of the median section's area: less is debris
SEED_SHARE = 0.05  # of the largest piece's area: less never makes a section of its own
JUMP = 1.4  # gaps within a section are smaller than those between sections by at least this factor
ALIKE = 0.24  # standard deviation of the sizes of sections on one slide over their mean, at most
ROW_OVERLAP = 0.4


def section_groups(mask: Bool, expected: int | None = None) -> list[Bool]:
    """The sections of a slide's tissue mask (y, x), one mask each, in no particular order.

    Exactly ``expected`` of them where there are as many pieces at all, else what there is; without a number, what the gaps say.
    """
    labels, stats = pieces_of(mask, 4)
    area = stats[1:, 4]
    if not len(area):
        return []
    main = np.flatnonzero(area >= SEED_SHARE * area.max()) + 1
    if expected is not None and len(main) < expected:
        main = np.sort(np.argsort(-area, kind="stable")[:expected]) + 1
    gaps = gaps_between(labels, main)
    groups = merged(gaps, stats[main], expected)
    return with_crumbs([np.isin(labels, main[group]) for group in groups], labels, stats, set(main.tolist()))


def gaps_between(labels: NDArray[np.int32], pieces: NDArray[np.intp]) -> NDArray[np.float64]:
    """The shortest distance in pixels between any two pieces, (n, n); infinite on the diagonal."""
    gaps = np.full((len(pieces), len(pieces)), np.inf)
    for i, piece in enumerate(pieces):
        away = cv2.distanceTransform((labels != piece).astype(np.uint8), cv2.DIST_L2, 5)
        for j, other in enumerate(pieces):
            if j != i:
                gaps[i, j] = float(away[labels == other].min())
    return np.asarray(np.minimum(gaps, gaps.T), np.float64)


def cost(gap: float, area_i: float, area_j: float, typical: float) -> float:
    """How unlikely it is that two groups are one section: their gap over the size of a section, more if the sum is too large.

    Sections of one slide are about equally large: a union larger than ``typical`` (the expected area of one) costs its excess.
    """
    excess = max(0.0, (area_i + area_j) / typical - 1.3)
    return float(gap / np.sqrt(typical) + excess)


def merged(gaps: NDArray[np.float64], stats: NDArray[np.int32], expected: int | None) -> list[list[int]]:
    """Groups of pieces (indices): the cheapest pair joined first, until ``expected`` are left; or by :func:`gap_limit`."""
    groups = [[i] for i in range(len(stats))]
    areas = stats[:, 4].astype(float)
    if expected is None:
        return linked(gaps, gap_limit(gaps, stats)) if len(stats) > 1 else groups
    typical = areas.sum() / expected
    while len(groups) > expected:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
        prices = [
            cost(float(gaps[np.ix_(groups[i], groups[j])].min()), areas[groups[i]].sum(), areas[groups[j]].sum(), typical)
            for i, j in pairs
        ]
        first, second = pairs[int(np.argmin(prices))]
        groups[first] += groups.pop(second)
    return groups


def gap_limit(gaps: NDArray[np.float64], stats: NDArray[np.int32]) -> float:
    """The largest gap within a section, in pixels; 0 where each piece is a section of its own.

    Pieces of one section lie nearer to one another than sections do, and put together they are as large as the others: the
    smallest limit after which the gaps jump and all sections are about equally large.
    """
    area = stats[:, 4].astype(float)
    if len(area) == 2:
        return 0.15 * float(stats[:, 2:4].max()) if area.min() < 0.5 * area.max() else 0.0
    edges = np.sort(tree_edges(gaps))
    for limit, following in zip((0.0, *edges[:-1]), edges, strict=True):
        sizes = np.array([area[group].sum() for group in linked(gaps, float(limit))])
        if following >= JUMP * limit and sizes.std() <= ALIKE * sizes.mean():
            return float(limit)
    return 0.0


def linked(gaps: NDArray[np.float64], limit: float) -> list[list[int]]:
    """Groups of pieces joined by gaps of at most ``limit``."""
    count, labels = connected_components(gaps <= limit, directed=False)
    return [np.flatnonzero(labels == k).tolist() for k in range(count)]


def tree_edges(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gaps along the shortest tree through all pieces (Prim), (n - 1,)."""
    near, edges, left = gaps[0].copy(), [], set(range(1, len(gaps)))
    while left:
        i = min(left, key=lambda k: (near[k], k))
        left.remove(i)
        edges.append(near[i])
        near = np.minimum(near, gaps[i])
    return np.array(edges)


def with_crumbs(groups: Sequence[Bool], labels: NDArray[np.int32], stats: NDArray[np.int32], used: set[int]) -> list[Bool]:
    """The groups without those that are debris, and with the small pieces, each in the group nearest to it if that is near."""
    sizes = np.array([g.sum() for g in groups], float)
    kept = [g.copy() for g, size in zip(groups, sizes, strict=True) if size >= DEBRIS_SHARE * np.median(sizes)]
    away = [cv2.distanceTransform((~g).astype(np.uint8), cv2.DIST_L2, 5) for g in kept]
    for piece in range(1, len(stats)):
        if piece not in used:
            where = labels == piece
            near = [float(a[where].min()) for a in away]
            if min(near) <= 0.1 * np.sqrt(float(np.median(sizes))):
                kept[int(np.argmin(near))] |= where
    return kept


def box_of(group: Bool) -> Box:
    """The bounding box of a mask: y, x, height, width."""
    y, x = np.flatnonzero(group.any(axis=1)), np.flatnonzero(group.any(axis=0))
    return int(y[0]), int(x[0]), int(y[-1] - y[0] + 1), int(x[-1] - x[0] + 1)


def reading_order(boxes: Sequence[Box], order: str = "row-major") -> list[int]:
    """Indices of boxes in reading order (one of ``READING_ORDERS``).

    Rows are boxes that overlap vertically with what the row holds by at least ``ROW_OVERLAP`` of the lower one's height, so rows
    need not be straight; ``rtl`` reads rows from the right (columns from the right one), ``snake`` turns round after each row.
    Raises ``ValueError`` for an unknown order.
    """
    if order not in READING_ORDERS:
        raise ValueError(f"The reading order must be one of {', '.join(READING_ORDERS)}, found {order!r}.")
    by_column = order.startswith("column")
    lines = lines_of([(x, y, w, h) if by_column else (y, x, h, w) for y, x, h, w in boxes])
    backwards = order.endswith("-rtl")
    if by_column:
        return [i for line in (lines[::-1] if backwards else lines) for i in line]
    found: list[int] = []
    for n, line in enumerate(lines):
        turn = backwards != (order.startswith("snake") and n % 2 == 1)
        found += line[::-1] if turn else line
    return found


def lines_of(boxes: Sequence[Box]) -> list[list[int]]:
    """Boxes (start, place, extent, breadth) gathered into lines from the first start on, each line sorted by place."""
    lines: list[list[int]] = []
    for i in sorted(range(len(boxes)), key=lambda k: boxes[k][0] + boxes[k][2] / 2):
        shares = [max(overlap(boxes[i], boxes[j]) for j in line) for line in lines]
        if shares and max(shares) >= ROW_OVERLAP:
            lines[int(np.argmax(shares))].append(i)
        else:
            lines.append([i])
    middle = [float(np.mean([boxes[i][0] + boxes[i][2] / 2 for i in line])) for line in lines]
    ordered = [lines[k] for k in np.argsort(middle, kind="stable")]
    return [sorted(line, key=lambda k: boxes[k][1] + boxes[k][3] / 2) for line in ordered]


def overlap(a: Box, b: Box) -> float:
    """By how much two boxes overlap along their first axis, as a share of the shorter; 0 where they lie on top of one another.

    Boxes that share most of their second axis are above one another, not beside, however they overlap along the first.
    """
    shared = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    across = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return 0.0 if across > 0.5 * min(a[3], b[3]) else max(0.0, shared / min(a[2], b[2]))
