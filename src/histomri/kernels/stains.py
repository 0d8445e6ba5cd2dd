"""Stains of a brightfield section: optical density, how much of each stain a pixel holds, and the colours of the stains.

Light that passes a stain is weakened by Beer and Lambert's law, so optical densities of stains add up (Ruifrok & Johnston 2001):
``OD = C V`` with the concentrations C (n,) and the unit vectors V (n, 3). Two stains span a plane, and the colours of the pixels
fill a wedge of it whose edges are the two stains (Macenko et al. 2009). ``docs/decisions/stains.md`` has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

# below it the colour of a pixel is more the background's than a stain's; half of the densest tenth in pale sections
MIN_DENSITY = 0.12
PALEST = 0.03
MAX_DENSITY = 1.4
MIN_PIXELS = 400
MAX_SPREAD = 4.0
# what lies beyond the edge of the wedge is noise: half of that lies within 0.67 of its standard deviation where the pixels at the
# edge hold one stain only, within 0.5 where they thin out towards it
EDGE_MEDIAN = 0.6
# JPEG disturbs colour more than brightness, and so the plane of the stains more than what lies across it (measured: 1.6 to 2.4)
JPEG_SPREAD = 1.8
LEAST_NOISE = 0.1
EDGE_STEP_RAD = np.deg2rad(0.1)
LEAST_BEYOND = 0.0075
LEAST_BEYOND_PX = 12
MAX_TURN_RAD = np.deg2rad(30.0)
# a wedge narrower than this share of the usual one is that of pixels in which the stains are mixed everywhere
MIN_WEDGE_SHARE = 0.55
MIN_WEDGE_DEG = 10.0
MAX_GAIN = 3.0
# a concentration below it may be noise: 4.5 percent of the light
PRESENT = 0.02
ROWS = 4096


@dataclass(frozen=True, eq=False)
class StainColours:
    """The colours of a section's stains: unit vectors (n, 3) of optical density in red, green, blue.

    ``found`` says for each stain whether its vector is the image's own (else the one given); ``confidence`` (n,) lies in 0 to 1:
    the share of the evidence that is wanted, 0 for a vector that the image did not give.
    """

    vectors: Float
    found: tuple[bool, ...]
    confidence: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Look:
    """How the stains of a section look: what makes two sections with the same amount of stain differ.

    ``background`` per channel in pixel values; ``vectors`` (n, c) the stains' densities per unit of concentration; ``strengths``
    (n,) the concentrations that three quarters of what is stained stay below.
    """

    background: Float
    vectors: Float
    strengths: Float


def optical_density(pixels: NDArray[Any], background: tuple[float, ...]) -> Float32:
    """``log10((background + 1) / (I + 1))`` per channel, (..., c) float32, negative where brighter than the background."""
    level = np.log10(np.asarray(background, np.float32) + np.float32(1))
    if pixels.dtype == np.uint8 and pixels.size > 1000:
        # of 256 logarithms each is taken once
        return np.asarray(level - np.log10(np.arange(256, dtype=np.float32) + np.float32(1))[pixels], np.float32)
    density: Float32 = level - np.log10(np.maximum(pixels, 0).astype(np.float32) + np.float32(1))
    return density


def unit(vectors: NDArray[Any]) -> Float:
    """Rows (..., 3) of length 1."""
    v = np.asarray(vectors, float)
    length: Float = v / np.linalg.norm(v, axis=-1, keepdims=True)
    return length


def angle_deg(a: NDArray[Any], b: NDArray[Any]) -> Float:
    """Angles between the rows of two sets of vectors (..., 3), in degrees."""
    cosine = (unit(a) * unit(b)).sum(axis=-1)
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))), float)


def concentrations(density: NDArray[Any], vectors: Float) -> Float32:
    """How much of each stain (..., n) explains the density (..., 3) best, none of them negative.

    Least squares ``min |OD - C V|`` under ``C >= 0``, exact for up to three stains: where the plain solution is negative, the
    best one that leaves stains out is taken. Raises ``ValueError`` for vectors that do not tell their stains apart.
    """
    count = len(vectors)
    if np.linalg.matrix_rank(vectors, tol=1e-3) < count:
        raise ValueError(f"stain vectors must be independent, found {np.round(vectors, 3).tolist()}")
    flat = np.ascontiguousarray(density, np.float32).reshape(-1, density.shape[-1])
    out = _times(flat, np.linalg.pinv(vectors).astype(np.float32))
    if np.allclose(vectors @ vectors.T, np.eye(count), rtol=0, atol=1e-9):
        # of stains that share no colour each is what it is without the others
        return np.maximum(out, 0).reshape(*density.shape[:-1], count)
    wrong = np.flatnonzero((out < 0).any(axis=1))
    if len(wrong):
        out[wrong] = _without_negatives(flat[wrong], vectors)
    return np.asarray(out.reshape(*density.shape[:-1], count), np.float32)


def _times(rows: Float32, matrix: Float32) -> Float32:
    """``rows @ matrix`` of (m, c) rows, a few thousand at a time: for many BLAS makes threads, and waits longer for them."""
    out = np.empty((len(rows), matrix.shape[1]), np.float32)
    for start in range(0, len(rows), ROWS):
        np.matmul(rows[start : start + ROWS], matrix, out=out[start : start + ROWS])
    return out


def _without_negatives(flat: Float32, vectors: Float) -> Float32:
    """The best feasible solution (m, n) over all proper subsets of the stains; none of them is one, too."""
    count = len(vectors)
    best, gain = np.zeros((len(flat), count), np.float32), np.zeros(len(flat), np.float32)
    for size in range(1, count):
        for chosen in map(list, combinations(range(count), size)):
            part = _times(flat, np.linalg.pinv(vectors[chosen]).astype(np.float32))
            # of a least-squares solution the length of the fit is what it explains
            explained = (_times(part, vectors[chosen].astype(np.float32)) ** 2).sum(axis=1)
            better = (part >= 0).all(axis=1) & (explained > gain)
            best[better] = 0
            best[np.ix_(better, chosen)] = part[better]
            gain[better] = explained[better]
    return best


def estimate_colours(pixels: NDArray[Any], background: tuple[float, ...], given: Float) -> StainColours:
    """The colours of the stains of tissue pixels (m, 3), looked for within 30 degrees of the ``given`` unit vectors (n, 3).

    One stain: the median direction of the densities. Two: the edges of the wedge. Three cannot be found without more knowledge,
    nor can stains of which the image shows too little; those keep their given vectors.
    """
    density = optical_density(pixels, background).astype(float)
    usable = _usable(density, pixels, background)
    kept = StainColours(unit(given), (False,) * len(given), (0.0,) * len(given))
    if usable.sum() < MIN_PIXELS or len(given) > 2:
        return kept
    density = density[usable]
    noise = 1 / (pixels[usable].astype(float) + 1)
    return _one_colour(density, noise, kept) if len(given) == 1 else _two_colours(density, noise, kept)


def _usable(density: Float, pixels: NDArray[Any], background: tuple[float, ...]) -> Bool:
    """Pixels with a colour: dense enough, no channel without light, not brighter than the background."""
    length = np.linalg.norm(density, axis=1)
    enough = float(np.clip(np.percentile(length, 90) / 2, PALEST, MIN_DENSITY)) if len(length) else MIN_DENSITY
    lit = (pixels > 0.02 * np.asarray(background)).all(axis=1)
    return np.asarray((length > enough) & (length < MAX_DENSITY) & lit & (density > -0.05).all(axis=1), bool)


def _one_colour(density: Float, noise: Float, kept: StainColours) -> StainColours:
    """The median direction, weighted by the inverse of its noise."""
    directions = unit(density)
    weights = np.linalg.norm(density, axis=1) / noise.mean(axis=1)
    centre = unit(np.array([_weighted_median(directions[:, i], weights) for i in range(3)]))
    off = float(angle_deg(centre, kept.vectors[0]))
    if off > np.rad2deg(MAX_TURN_RAD):
        return kept
    return StainColours(centre[None], (True,), (round(min(1.0, len(density) / (5 * MIN_PIXELS)), 3),))


def _weighted_median(values: Float, weights: Float) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _two_colours(density: Float, noise: Float, kept: StainColours) -> StainColours:
    """The edges of the wedge in the plane of the densities; a stain without an edge keeps its given vector."""
    normal, sigma, inside = _plane(density, noise, kept.vectors)
    axes = _axes(normal, kept.vectors)
    planar, noise = density[inside] @ axes.T, noise[inside]
    vectors, found, confidence = kept.vectors.copy(), [False, False], [0.0, 0.0]
    for i, side in enumerate((-1.0, 1.0)):
        given = float(np.arctan2(side * (kept.vectors[i] @ axes[1]), kept.vectors[i] @ axes[0]))
        across = np.cos(given) * side * axes[1] - np.sin(given) * axes[0]
        spread = JPEG_SPREAD * sigma * _along(noise, across)
        edge, share = _edge(planar[:, 0], side * planar[:, 1], spread, given)
        if edge is not None:
            vectors[i] = np.cos(edge) * axes[0] + side * np.sin(edge) * axes[1]
            found[i], confidence[i] = True, round(share, 3)
    usual = float(angle_deg(kept.vectors[0], kept.vectors[1]))
    if float(angle_deg(vectors[0], vectors[1])) < max(MIN_WEDGE_DEG, MIN_WEDGE_SHARE * usual):
        return kept
    return StainColours(unit(np.maximum(vectors, 0)), (found[0], found[1]), (confidence[0], confidence[1]))


def _along(noise: Float, direction: Float) -> Float:
    """Noise (m,) of densities along a direction, from that of their channels (m, 3)."""
    return np.asarray(np.sqrt(noise**2 @ direction**2), float)


def _plane(density: Float, noise: Float, given: Float) -> tuple[Float, float, Bool]:
    """Normal of the plane through 0 that holds the densities, the noise across it in units of ``noise``, and who lies in it.

    Weighted by the inverse noise and refitted without what lies far off: dirt, ink, a third stain.
    """
    normal = unit(np.cross(given[0], given[1]))
    inside = np.ones(len(density), bool)
    sigma = 1.0
    for _ in range(8):
        scaled = density / _along(noise, normal)[:, None]
        _, axes = np.linalg.eigh(scaled[inside].T @ scaled[inside])
        normal = axes[:, 0] * (1 if axes[:, 0] @ normal >= 0 else -1)
        off = density @ normal / _along(noise, normal)
        sigma = max(float(np.median(np.abs(off[inside]))) / 0.6745, LEAST_NOISE)
        inside = np.abs(off) < MAX_SPREAD * sigma
    return normal, sigma, inside


def _axes(normal: Float, given: Float) -> Float:
    """Two orthonormal axes (2, 3) of the plane: along the middle of the given vectors, and from the first to the second."""
    middle = given.sum(axis=0)
    first = unit(middle - (middle @ normal) * normal)
    second = np.cross(normal, first)
    return np.stack([first, second * np.sign(second @ (given[1] - given[0]))])


def _edge(x: Float, y: Float, spread: Float, given: float) -> tuple[float | None, float]:
    """Angle of the upper edge of a wedge in a plane, and how much of the evidence wanted there is, 0 to 1.

    ``given`` is where it should be, ``spread`` the noise of each point. From 30 degrees beyond it inwards: the first angle at
    which what lies beyond is spread wider than noise alone. Counting shares of pixels, as percentiles do, would take a rare
    stain for noise and the noise of a common one for its edge.
    """
    angle = np.arctan2(y, x)
    near = np.abs(angle - given) < MAX_TURN_RAD
    least = max(LEAST_BEYOND_PX, round(LEAST_BEYOND * len(x)))
    order = np.argsort(-angle[near], kind="stable")
    x, y, spread, angle = x[near][order], y[near][order], spread[near][order], angle[near][order]
    if len(angle) < 2 * least:
        return None, 0.0
    edge = float(angle[least - 1])
    while edge > given - MAX_TURN_RAD:
        count = int(np.searchsorted(-angle, -edge))
        beyond = (y[:count] * np.cos(edge) - x[:count] * np.sin(edge)) / spread[:count]
        if count >= least and np.median(beyond) > EDGE_MEDIAN:
            return edge, min(1.0, count / (5 * least))
        edge -= EDGE_STEP_RAD
    return None, 0.0


def strengths_of(density: NDArray[Any], vectors: Float) -> Float:
    """How strongly each stain (n,) came out in pixels of densities (m, c); not 0. See :func:`upper_quartile`."""
    return strengths(concentrations(density, vectors))


def strengths(amounts: Float32) -> Float:
    """The same of concentrations (m, n)."""
    return np.array([upper_quartile(column, PRESENT) for column in amounts.T])


def upper_quartile(amount: NDArray[Any], least: float) -> float:
    """The 75th percentile of the amounts above ``least``; ``least`` where there are none.

    The usual 99th belongs to dirt and folds (over 120 sections of BigBrain it made neighbours less alike than they were), and
    without ``least`` a marker that few cells hold would have no strength.
    """
    held = amount[amount > least]
    return float(np.percentile(held, 75)) if len(held) else least


def common_look(looks: list[Look]) -> Look:
    """The look in the middle of those of a study's sections with the same stains: medians, the vectors made unit again.

    Some sections with a look of their own, and one section more or less, move it little.
    """
    vectors = unit(np.median([look.vectors for look in looks], axis=0))
    background = np.median([look.background for look in looks], axis=0)
    return Look(background, vectors, np.median([look.strengths for look in looks], axis=0))


def normalised(pixels: NDArray[Any], own: Look, wanted: Look) -> NDArray[Any]:
    """Pixels (..., c) of any type as they would look with another section's background, stain colours and strengths.

    ``OD' = (C a) V' + (OD - C V)`` with ``a`` the ratio of the strengths, 1/3 to 3. What the stains do not explain stays as it
    is, and a section that has the wanted look already keeps its pixels but for rounding.
    """
    density = optical_density(pixels, tuple(own.background))
    amount = concentrations(density, own.vectors)
    gain = np.clip(wanted.strengths / own.strengths, 1 / MAX_GAIN, MAX_GAIN)
    change = amount @ (gain[:, None] * wanted.vectors - own.vectors).astype(np.float32)
    level = (wanted.background + 1).astype(np.float32)
    out = level * np.power(np.float32(10), -(density + change)) - np.float32(1)
    return as_type(out, pixels.dtype)


def rescaled(pixels: NDArray[Any], own: Look, wanted: Look) -> NDArray[Any]:
    """The same where tissue is brighter than its background: ``(I - b) a + b'`` per channel."""
    gain = np.clip(wanted.strengths / own.strengths, 1 / MAX_GAIN, MAX_GAIN)
    out = (pixels.astype(np.float32) - own.background.astype(np.float32)) * gain.astype(np.float32)
    return as_type(out + wanted.background.astype(np.float32), pixels.dtype)


def as_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values rounded and clipped to an integer type; other types are only converted."""
    if dtype.kind not in "ui":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(values), limits.min, limits.max), dtype)
