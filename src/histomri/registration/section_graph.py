"""All sections of a block placed at once from measured pairs.

Edges are accepted against a null distribution, a shortest-path tree gives the start (greedy's recon; a bad section becomes a
leaf, never a bridge), and a robust joint solve over ALL accepted edges (3dhirest) gives rotations first, then translations. What
no reference can tell, the low-frequency shape across the stack, is left as it comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.sparse.linalg import lsqr
from scipy.stats import norm

from histomri.registration.mirror_likeness import CHANCE, least_lead, sureness

Float = NDArray[np.float64]
FLIP = np.diag([1.0, -1.0, 1.0])
ROBUST_SWEEPS = 12
FEW_PAIRS_THRESHOLD = 0.25
LOOP_DEG = 8.0
LOOP_SHIFT = 0.25
LOOSE_ALPHA = 0.3
LEAST_AGREEING = 3
AROUND = 15
MOSTLY = 0.8


@dataclass(frozen=True, eq=False)
class Edge:
    """A measured pair: ``matrix`` (3, 3) maps mm of section ``fixed`` to mm of section ``moving`` rigidly.

    ``score`` is the structure score of the better face, ``other_face`` that of the worse one (a draw from the null distribution);
    ``distance_mm`` lies along the cutting axis.
    """

    fixed: str
    moving: str
    matrix: Float
    score: float
    margin: float
    other_face: float
    other_matrix: Float
    distance_mm: float

    @property
    def mirrored(self) -> bool:
        """Whether the two sections lie on opposite faces."""
        return bool(np.linalg.det(self.matrix[:2, :2]) < 0)


@dataclass(frozen=True, eq=False)
class StackSolution:
    """``block_to_section`` (3, 3) per section that could be placed; ``component`` numbers (0 = largest) of all sections;
    ``threshold`` of the score above which edges were accepted; per section the best accepted ``score``, the rms misfit of its
    edges in mm, and how ``sure`` its place is, 0 to 1."""

    block_to_section: dict[str, Float]
    component: dict[str, int]
    threshold: float
    score: dict[str, float]
    misfit_mm: dict[str, float]
    accepted: int
    sure: dict[str, float]


def null_threshold(edges: Iterable[Edge], alpha: float = 0.01) -> float:
    """The score that an unrelated pair exceeds with probability ``alpha``, from the wrong faces of the measured pairs.

    The wrong face of a true pair shows the same tissue at the same size with unrelated structure, so its score is a draw from the
    null distribution which costs nothing (cf. ASHLAR, which scores unrelated tile pairs).
    """
    return threshold_of([e.other_face for e in edges], alpha)


def threshold_of(null_scores: Iterable[float], alpha: float = 0.01) -> float:
    """Upper ``alpha`` quantile of a robust normal fit to scores of unrelated pairs; 0.25 where there are fewer than four."""
    null = np.array([s for s in null_scores if np.isfinite(s) and s > -1])
    if len(null) < 4:
        return FEW_PAIRS_THRESHOLD
    middle = float(np.median(null))
    spread = 1.4826 * float(np.median(np.abs(null - middle))) + 1e-3
    return middle + float(norm.isf(alpha)) * spread


def inverse(matrix: Float) -> Float:
    """The matrix from the other end."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def edge_cost(score: float, distance_mm: float, spacing_mm: float) -> float:
    """``(1 - score)^4 dz 1.1^dz`` with dz in section spacings (greedy's recon): short good edges are cheap."""
    steps = max(distance_mm / max(spacing_mm, 1e-9), 1e-3)
    return float((1 - score) ** 4 * steps * 1.1 ** min(steps, 200.0)) + 1e-9


def solve_stack(
    edges: list[Edge],
    sections: Mapping[str, tuple[Float, bool | None]],
    spacing_mm: float,
    fixed: Mapping[str, Float] | None = None,
    alpha: float = 0.01,
) -> StackSolution:
    """Place all sections of one block.

    ``sections``: id -> (tissue centroid (2,) in section mm, declared mirrored or None for auto). ``fixed``: id -> known
    ``block_to_section`` (from blockface) which are kept. Only the largest component is placed,
    together with what is joined to a fixed section; others stay out.
    """
    names = list(sections)
    threshold = null_threshold(edges, alpha)
    least = least_lead(edges, names, alpha)
    loose = loose_threshold(edges, least)
    together = agreeing(edges, sections, loose)
    agreed = {id(e) for e in together}
    passed = [e for e in edges if (e.score > threshold and e.margin > 0) or e.margin > least or id(e) in agreed]
    accepted = bridged(names, consistent(passed, sections), passed)
    accepted = rejoined(accepted, edges, sections, spacing_mm, set(fixed or {}), loose)
    component = _components(names, accepted, set(fixed or {}))
    main = [n for n in names if component[n] == 0]
    inside = [e for e in accepted if e.fixed in set(main) and e.moving in set(main)]
    start = _tree(main, inside, spacing_mm, fixed or {}, sections)
    solution = _joint(start, inside, sections, spacing_mm, fixed or {})
    if not fixed:
        solution = _choose_faces(solution, sections)
    score = {n: max((e.score for e in inside if n in (e.fixed, e.moving)), default=0.0) for n in names}
    lead = {n: max((e.margin for e in inside if n in (e.fixed, e.moving)), default=0.0) for n in names}
    agree = {n: sum(n in (e.fixed, e.moving) for e in together) for n in names}
    # one section by itself, with nothing to be compared with, lies right
    sure = {n: max(sureness(score[n], threshold, lead[n], least), sure_by_agreement(agree[n])) if edges else 1.0 for n in names}
    return StackSolution(solution, component, threshold, score, _misfit(solution, inside, sections), len(inside), sure)


def consistent(edges: list[Edge], sections: Mapping[str, tuple[Float, bool | None]]) -> list[Edge]:
    """The edges without those that every triangle through them contradicts: a wrong pair may score as high as a right one.

    A triangle agrees where going round it turns by less than ``LOOP_DEG`` and misses the start by less than a quarter of the
    distance between tissue centroid and image corner. An edge in no triangle has nothing against it.
    """
    return [e for e, (closed, count) in zip(edges, _triangles(edges, sections), strict=True) if closed or not count]


def agreeing(edges: list[Edge], sections: Mapping[str, tuple[Float, bool | None]], loose: float) -> list[Edge]:
    """The edges that agree with two ways round or more, over edges that score above ``loose``, however weak each is by itself.

    Unrelated pairs close a triangle by chance once in 45, once in 4 where outlines alone line them up, and every second time
    where nothing tells a specimen from its mirror image; so nearly all triangles around there in the stack must close.
    """
    place = {n: i for i, n in enumerate(sections)}
    some = sorted(
        (e for e in edges if e.score > loose and e.margin > 0),
        key=lambda e: (place[e.fixed] + place[e.moving], e.fixed, e.moving),
    )
    counts = np.array(_triangles(some, sections), float).reshape(-1, 2)
    closed, all_of_them = (_sums_around(c, AROUND) for c in counts.T)
    good = (counts[:, 0] >= LEAST_AGREEING - 1) & (closed >= MOSTLY * all_of_them)
    return [e for e, fine in zip(some, good, strict=True) if fine]


def _sums_around(values: Float, reach: int) -> Float:
    """The sum of each value (n,) and the ``reach`` ones on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    return np.asarray(total[np.minimum(at + reach + 1, len(values))] - total[np.maximum(at - reach, 0)])


def _triangles(edges: list[Edge], sections: Mapping[str, tuple[Float, bool | None]]) -> list[tuple[int, int]]:
    """For each edge how many of the triangles through it close, and how many there are."""
    known = {(e.fixed, e.moving): e.matrix for e in edges} | {(e.moving, e.fixed): inverse(e.matrix) for e in edges}
    beside: dict[str, set[str]] = {}
    for a, b in known:
        beside.setdefault(a, set()).add(b)
    out = []
    for e in edges:
        thirds = sorted(beside[e.fixed] & beside[e.moving])
        loops = [known[k, e.fixed] @ known[e.moving, k] @ e.matrix for k in thirds]
        out.append((sum(closes(loop, sections[e.fixed][0]) for loop in loops), len(loops)))
    return out


def loose_threshold(edges: list[Edge], least: float) -> float:
    """The score above which a pair counts where others agree with it; what unrelated sections reach where wrong faces score more
    than chance does, which is where ``least`` is finite.
    """
    return CHANCE if np.isfinite(least) else null_threshold(edges, LOOSE_ALPHA)


def sure_by_agreement(count: int) -> float:
    """How sure a section's place is by ``count`` agreeing edges alone: a half for three of them, 0.8 for six."""
    return 1 - 1 / (count - 1) if count >= LEAST_AGREEING else 0.0


def bridged(names: list[str], edges: list[Edge], spare: list[Edge]) -> list[Edge]:
    """``edges`` and, where they leave the stack in pieces, the best of ``spare`` that join two pieces."""
    piece = {n: n for n in names}

    def root(n: str) -> str:
        while piece[n] != n:
            piece[n] = piece[piece[n]]
            n = piece[n]
        return n

    for e in edges:
        piece[root(e.fixed)] = root(e.moving)
    out = list(edges)
    for e in sorted(spare, key=lambda e: (-e.score, e.fixed, e.moving)):
        if root(e.fixed) != root(e.moving):
            piece[root(e.fixed)] = root(e.moving)
            out.append(e)
    return out


def rejoined(
    accepted: list[Edge],
    edges: list[Edge],
    sections: Mapping[str, tuple[Float, bool | None]],
    spacing_mm: float,
    anchors: set[str],
    loose: float,
) -> list[Edge]:
    """``accepted`` and, where they leave the stack in pieces, weaker pairs between two pieces that agree with each other.

    Beyond a run of lost sections, or where the tissue changes fast, each pair by itself scores like chance; but three pairs that
    put one piece at the same place against the other, face, angle and shift, hardly do so by chance (about 1 in 100 of six
    unrelated pairs: a pair of them agrees in face and angle once in 45).
    """
    weak = [e for e in edges if e.score > loose and e.margin > 0]
    out = list(accepted)
    while True:
        piece = _components(list(sections), out, anchors)
        across: dict[tuple[int, int], list[Edge]] = {}
        for e in weak:
            if piece[e.fixed] != piece[e.moving]:
                across.setdefault((piece[e.fixed], piece[e.moving]), []).append(e)
        places = {n: m for p in set(piece.values()) for n, m in _piece_places(p, piece, out, sections, spacing_mm).items()}
        groups = [g for found in across.values() if (g := _agreeing(found, places, sections)) is not None]
        if not groups:
            return out
        best: list[Edge] = max(groups, key=lambda g: (len(g), sum(e.score for e in g)))
        out += best


def _piece_places(
    piece: int,
    pieces: Mapping[str, int],
    edges: list[Edge],
    sections: Mapping[str, tuple[Float, bool | None]],
    spacing_mm: float,
) -> dict[str, Float]:
    """``block_to_section`` of a piece's sections, in a block of its own."""
    names = [n for n, p in pieces.items() if p == piece]
    inside = [e for e in edges if pieces[e.fixed] == piece and pieces[e.moving] == piece]
    return _tree(names, inside, spacing_mm, {}, sections)


def _agreeing(
    edges: list[Edge], places: Mapping[str, Float], sections: Mapping[str, tuple[Float, bool | None]]
) -> list[Edge] | None:
    """The most of the edges between two pieces that put them at one place; None if fewer than ``LEAST_AGREEING`` do."""
    # the second piece's block as the first one's sees it, by each edge
    onto = {id(e): inverse(places[e.moving]) @ e.matrix @ places[e.fixed] for e in edges}
    best: list[Edge] = []
    for e in edges:
        there, back = places[e.fixed], inverse(places[e.fixed])
        loops = [(other, there @ inverse(onto[id(e)]) @ onto[id(other)] @ back) for other in edges]
        group = [other for other, loop in loops if closes(loop, sections[e.fixed][0])]
        if (len(group), sum(o.score for o in group)) > (len(best), sum(o.score for o in best)):
            best = group
    return best if len(best) >= LEAST_AGREEING else None


def closes(loop: Float, centroid: Float) -> bool:
    """Whether a way round a triangle comes back to where it started."""
    if np.linalg.det(loop[:2, :2]) < 0 or abs(np.degrees(_angle(loop))) > LOOP_DEG:
        return False
    missed = loop @ np.append(centroid, 1.0) - np.append(centroid, 1.0)
    return float(np.linalg.norm(missed[:2])) < LOOP_SHIFT * float(np.linalg.norm(centroid))


def _components(names: list[str], edges: list[Edge], fixed: set[str]) -> dict[str, int]:
    """Component number of each section, 0 for the largest; all fixed sections count as joined through the block."""
    index = {n: i for i, n in enumerate(names)}
    links = [(index[e.fixed], index[e.moving]) for e in edges]
    anchors = [index[n] for n in names if n in fixed]
    links += list(pairwise(anchors))
    rows, cols = zip(*links, strict=True) if links else ((), ())
    graph = coo_matrix((np.ones(len(links)), (rows, cols)), shape=(len(names), len(names)))
    _, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels, minlength=1)
    order = {int(label): rank for rank, label in enumerate(np.argsort(-sizes, kind="stable"))}
    if anchors:  # what is tied to the block is the stack, however small
        order = {label: (0 if label == labels[anchors[0]] else rank + 1) for label, rank in order.items()}
    return {n: order[int(labels[i])] for n, i in index.items()}


def _tree(
    names: list[str],
    edges: list[Edge],
    spacing_mm: float,
    fixed: Mapping[str, Float],
    sections: Mapping[str, tuple[Float, bool | None]],
) -> dict[str, Float]:
    """Compose edges along shortest paths from the root: ``block_to_section`` of every section."""
    index = {n: i for i, n in enumerate(names)}
    best: dict[tuple[int, int], tuple[float, Float]] = {}
    for e in edges:
        cost = edge_cost(e.score, e.distance_mm, spacing_mm)
        a, b = index[e.fixed], index[e.moving]
        if cost < best.get((a, b), (np.inf, e.matrix))[0]:
            best[a, b] = (cost, e.matrix)
            best[b, a] = (cost, inverse(e.matrix))
    pairs = list(best)
    rows, cols = [p[0] for p in pairs], [p[1] for p in pairs]
    graph = csr_matrix(([best[p][0] for p in pairs], (rows, cols)), shape=(len(names), len(names)))
    anchors = [index[n] for n in fixed if n in index]
    if not anchors:
        distance = dijkstra(graph, directed=False)
        anchors = [int(np.where(np.isfinite(distance), distance, 0).sum(axis=1).argmin())] if names else []
    out: dict[str, Float] = {}
    if not anchors:
        return out
    _, parent, _ = dijkstra(graph, directed=False, indices=anchors, return_predecessors=True, min_only=True)
    for n in names:
        path, node = [], index[n]
        while parent[node] >= 0:
            path.append((int(parent[node]), node))
            node = int(parent[node])
        root = names[node]
        matrix = np.asarray(fixed[root]) if root in fixed else _upright(sections[root])
        for step in reversed(path):
            matrix = best[step][1] @ matrix
        out[n] = matrix
    return out


def _upright(section: tuple[Float, bool | None]) -> Float:
    """The root lies in the block as on its slide, its tissue centred on the block's axis."""
    centroid, mirrored = section
    matrix = FLIP.copy() if mirrored else np.eye(3)
    matrix[:2, 2] = centroid
    return matrix


def _joint(
    start: dict[str, Float],
    edges: list[Edge],
    sections: Mapping[str, tuple[Float, bool | None]],
    spacing_mm: float,
    fixed: Mapping[str, Float],
) -> dict[str, Float]:
    """Rotations, then translations, of all sections from all edges by robust least squares (IRLS, Cauchy weights)."""
    names = list(start)
    if len(names) < 2 or not edges:
        return start
    flips = {n: np.linalg.det(start[n][:2, :2]) < 0 for n in names}
    usable = [e for e in edges if e.mirrored == (flips[e.fixed] != flips[e.moving])]
    if not usable:
        return start
    weight = np.array([1.0 / np.sqrt(edge_variance(e, spacing_mm)) for e in usable])
    free = {n: i for i, n in enumerate(k for k in names if k not in fixed)} or None
    if free is None:
        return start
    angles = _solve_angles(start, usable, weight, free, flips)
    turned = {n: _with_angle(start[n], angles[n], flips[n], sections[n][0]) if n in free else start[n] for n in names}
    return _solve_shifts(turned, usable, weight, free, sections)


def edge_variance(edge: Edge, spacing_mm: float) -> float:
    """Relative variance of an edge: grows with the distance and falls with the score."""
    return (0.3 + edge.distance_mm / max(spacing_mm, 1e-9)) * (1.05 - min(edge.score, 1.0)) ** 2


def _angle(matrix: Float) -> float:
    """Angle of a rigid block-to-section matrix once the flip of the section is taken off."""
    linear = matrix[:2, :2] if np.linalg.det(matrix[:2, :2]) > 0 else FLIP[:2, :2] @ matrix[:2, :2]
    return float(np.arctan2(linear[0, 1] - linear[1, 0], linear[0, 0] + linear[1, 1]))


def _solve_angles(
    start: dict[str, Float], edges: list[Edge], weight: Float, free: dict[str, int], flips: dict[str, bool]
) -> dict[str, float]:
    angles = {n: _angle(m) for n, m in start.items()}
    measured = np.array([_edge_angle(e, flips) for e in edges])
    rows, cols, signs = _incidence(edges, free)
    for _ in range(ROBUST_SWEEPS):
        residual = np.array([_wrap(m - (angles[e.moving] - angles[e.fixed])) for m, e in zip(measured, edges, strict=True)])
        robust = weight * _cauchy(residual * weight)
        step = _weighted_solve(rows, cols, signs, residual, robust, len(free))
        for n, i in free.items():
            angles[n] += float(step[i])
    return angles


def _edge_angle(edge: Edge, flips: dict[str, bool]) -> float:
    """Angle of the edge between the unflipped frames of its two sections."""
    before = FLIP if flips[edge.fixed] else np.eye(3)
    after = FLIP if flips[edge.moving] else np.eye(3)
    return _angle(after @ edge.matrix @ before)


def _with_angle(matrix: Float, angle: float, flipped: bool, pivot: Float) -> Float:
    """The same placement with another angle, turned about the tissue's centroid ``pivot`` (section mm)."""
    c, s = np.cos(angle), np.sin(angle)
    linear = np.array([[c, s], [-s, c]])
    if flipped:
        linear = FLIP[:2, :2] @ linear
    at = np.linalg.solve(matrix[:2, :2], pivot - matrix[:2, 2])
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, pivot - linear @ at
    return out


def _solve_shifts(
    start: dict[str, Float],
    edges: list[Edge],
    weight: Float,
    free: dict[str, int],
    sections: Mapping[str, tuple[Float, bool | None]],
) -> dict[str, Float]:
    """Shift each section in the block so that the two ends of each edge meet at the fixed section's tissue centroid."""
    to_block = {n: inverse(m) for n, m in start.items()}
    gaps = np.array([_gap(to_block, e, sections[e.fixed][0]) for e in edges])
    rows, cols, signs = _incidence(edges, free)
    shift = np.zeros((len(free), 2))
    for _ in range(ROBUST_SWEEPS):
        ends = np.zeros((len(edges), 2))
        np.add.at(ends, rows, signs[:, None] * shift[cols])
        residual = gaps - ends
        robust = weight * _cauchy(np.linalg.norm(residual, axis=1) * weight)
        shift += np.stack([_weighted_solve(rows, cols, signs, residual[:, a], robust, len(free)) for a in range(2)], axis=1)
    out = dict(start)
    for n, i in free.items():
        move = np.eye(3)
        move[:2, 2] = -shift[i]
        out[n] = start[n] @ move
    return out


def _gap(to_block: dict[str, Float], edge: Edge, point: Float) -> Float:
    """``S_fixed(p) - S_moving(T p)`` in block mm, S being section to block."""
    here = np.append(point, 1.0)
    return np.asarray((to_block[edge.fixed] @ here - to_block[edge.moving] @ (edge.matrix @ here))[:2])


def _incidence(edges: list[Edge], free: dict[str, int]) -> tuple[NDArray[np.int_], NDArray[np.int_], Float]:
    """+1 for the moving and -1 for the fixed end of each edge, sections that are not free left out."""
    entries = [
        (row, free[name], sign)
        for row, e in enumerate(edges)
        for name, sign in ((e.moving, 1.0), (e.fixed, -1.0))
        if name in free
    ]
    rows, cols, signs = zip(*entries, strict=True)
    return np.array(rows), np.array(cols), np.array(signs)


def _weighted_solve(
    rows: NDArray[np.int_], cols: NDArray[np.int_], signs: Float, residual: Float, weight: Float, n: int
) -> Float:
    """Least squares step of smallest norm: whatever the edges do not determine does not move."""
    system = csr_matrix((signs * weight[rows], (rows, cols)), shape=(len(residual), n))
    return np.asarray(lsqr(system, residual * weight, atol=1e-12, btol=1e-12, iter_lim=4 * n + 200)[0])


def _cauchy(standardised: Float) -> Float:
    """Square root of the Cauchy weight ``1 / (1 + (r / 2.385 s)^2)``, s the robust spread."""
    size = np.abs(standardised)
    spread = 1.4826 * float(np.median(size)) + 1e-9
    return np.asarray(1 / np.sqrt(1 + (size / (2.385 * spread)) ** 2))


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _choose_faces(solution: dict[str, Float], sections: Mapping[str, tuple[Float, bool | None]]) -> dict[str, Float]:
    """Turn the whole stack over when that makes more sections upright (or as declared): the pairs alone cannot tell."""
    wrong = sum((np.linalg.det(m[:2, :2]) < 0) != sections[n][1] for n, m in solution.items() if sections[n][1] is not None)
    known = sum(sections[n][1] is not None for n in solution)
    mirrored = sum(np.linalg.det(m[:2, :2]) < 0 for n, m in solution.items() if sections[n][1] is None)
    auto = len(solution) - known
    # a declared section outweighs any number of guesses
    turn_over = wrong > known - wrong if known and wrong != known - wrong else mirrored > auto - mirrored
    return {n: m @ FLIP for n, m in solution.items()} if turn_over else solution


def _misfit(solution: dict[str, Float], edges: list[Edge], sections: Mapping[str, tuple[Float, bool | None]]) -> dict[str, float]:
    """Rms distance in mm between the two ends of each section's accepted edges."""
    to_block = {n: inverse(m) for n, m in solution.items()}
    sums: dict[str, list[float]] = {n: [] for n in solution}
    for e in edges:
        gap = float(np.linalg.norm(_gap(to_block, e, sections[e.fixed][0])))
        sums[e.fixed].append(gap)
        sums[e.moving].append(gap)
    return {n: float(np.sqrt(np.mean(np.square(v)))) if v else 0.0 for n, v in sums.items()}
