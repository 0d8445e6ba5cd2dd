"""Through-plane correction of the pose from the sections themselves.

Each section is held, in four quarters, against the MRI planes before and behind its own; where its structure fits best says how
far off the pose is there. A robust linear fit over all of them, ``d = a + b z + c y + e x``, corrects offset, scale along the
cutting axis and tilt. A volume registration is biased here, since the texture of a stack is frayed along its axis; single planes
are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from histomri.registration.samples import Channels

Float = NDArray[np.float64]
MIN_PART_PX = 200
MIN_VALUES = 12


def part_scores(target: Channels, section: Channels, parts: int = 2) -> list[tuple[Float, float, float]]:
    """Per part of the section's tissue: its centre (y, x) in mm, the structure cosine there, and its tissue pixels.

    ``parts`` along y times ``parts`` along x, each an equal share of the tissue's pixels along its axis: quarters for two.
    """
    inside = section.data[..., -1] > 0.5
    nodes = np.argwhere(inside)
    if len(nodes) < parts**2 * MIN_PART_PX:
        return []
    cuts = np.quantile(nodes, np.arange(1, parts) / parts, axis=0)
    rows, columns = (np.searchsorted(cuts[:, a], np.arange(inside.shape[a])) for a in (0, 1))
    out = []
    for row in range(parts):
        for column in range(parts):
            here = (rows == row)[:, None] & (columns == column)
            f, m = target.data[here][:, :-1], section.data[here][:, :-1]
            norm = float(np.sqrt(float((f**2).sum()) * float((m**2).sum())))
            tissue = np.argwhere(here & inside)
            centre = section.grid.to_world(tissue.mean(axis=0)) if len(tissue) else section.grid.centre_mm
            out.append((centre, float((f * m).sum()) / (norm + 1e-9), float(len(tissue))))
    return out


def peak(offsets: Float, scores: Float) -> float:
    """Where a parabola through the best score and its two neighbours has its top; NaN where the best is at an end."""
    best = int(scores.argmax())
    if best in (0, len(scores) - 1):
        return float("nan")
    a, b, c = scores[best - 1 : best + 2]
    return float(offsets[best] + 0.5 * (offsets[best + 1] - offsets[best]) * (a - c) / (a - 2 * b + c - 1e-12))


def section_depths(
    position_mm: float, section: Channels, plane_at: Callable[[float], Channels], offsets: Float, parts: int = 2
) -> list[tuple[Float, float]]:
    """Block points (z, y, x) of the parts of a section and by how many mm the best MRI plane lies behind their own."""
    scores = [part_scores(plane_at(position_mm + float(d)), section, parts) for d in offsets]
    if not scores[0]:
        return []
    out = []
    for q in range(parts**2):
        centre, _, pixels = scores[0][q]
        found = peak(offsets, np.array([s[q][1] for s in scores]))
        if pixels >= MIN_PART_PX and np.isfinite(found):
            out.append((np.array([position_mm, *centre]), found))
    return out


def depth_correction(points: Float, depths: Float, strain: tuple[float, float] = (0.0, np.inf)) -> Float | None:
    """The correction (4, 4) of block points, ``z <- z + a + b z + c y + e x``; None where there is too little to fit.

    Iteratively re-weighted least squares with Tukey's weights. ``strain``: the b that is expected, and its standard deviation,
    as one observation more beside depths whose own spread the residuals tell.
    """
    if len(depths) < MIN_VALUES or float(np.ptp(points[:, 0])) <= 0:
        return None
    middle = points.mean(axis=0)
    design = np.concatenate([np.ones((len(points), 1)), points - middle], axis=1)
    weight = np.ones(len(depths))
    fit, spread = np.zeros(4), float(np.std(depths))
    expected = np.array([[0.0, 1.0, 0.0, 0.0]])
    for _ in range(20):
        root, trust = np.sqrt(weight), spread / strain[1]
        rows = np.concatenate([design * root[:, None], trust * expected])
        fit = np.linalg.lstsq(rows, np.append(depths * root, trust * strain[0]), rcond=None)[0]
        residual = depths - design @ fit
        spread = 1.4826 * float(np.median(np.abs(residual))) + 1e-6
        weight = np.clip(1 - (residual / (4.685 * spread)) ** 2, 0, None) ** 2
    out = np.eye(4)
    out[0, :3] += fit[1:]
    out[0, 3] = fit[0] - float(fit[1:] @ middle)
    return out
