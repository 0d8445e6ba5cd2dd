"""What cutting and mounting does to a section, in closed form: from a point on the slide to the point of the block it shows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from histomri.testing.threads import over_ranges

Float = NDArray[np.float64]
HEAL = 5.0  # a tear is made up for over this many times its width, so that tissue is pushed and not folded


@dataclass(frozen=True)
class Tear:
    """A crack from ``start`` (y, x; mm, before the bend) along ``angle`` (radians from y to x), ``length_mm`` long.

    It gapes by ``2 * half_mm`` at its open end, and tissue beside it is pushed aside, decaying over ``HEAL * half_mm``.
    """

    start: tuple[float, float]
    angle: float
    length_mm: float
    half_mm: float
    sway_mm: float

    def row(self) -> Float:
        """The parameters as numbers for the kernel."""
        return np.array([*self.start, math.cos(self.angle), math.sin(self.angle), self.length_mm, self.half_mm, self.sway_mm])


@njit(cache=True)
def _gape(along: float, row: Float) -> float:
    """Half the width of the crack: full at the open end, 0 from the tip on."""
    t = min(1.0, max(0.0, along / row[4]))
    return float(row[5] * (1.0 - t * t * (3.0 - 2.0 * t)))


@njit(cache=True)
def _crack_frame(y: float, x: float, row: Float) -> tuple[float, float, float]:
    """Position along the crack, signed distance across it, and the crack's own sway there."""
    dy, dx = y - row[0], x - row[1]
    along = dy * row[2] + dx * row[3]
    sway = row[6] * math.sin(5.0 * along / row[4])
    return along, -dy * row[3] + dx * row[2] - sway, sway


@njit(cache=True)
def _from_crack(along: float, across: float, sway: float, row: Float) -> tuple[float, float]:
    across = across + sway
    return row[0] + along * row[2] - across * row[3], row[1] + along * row[3] + across * row[2]


@njit(cache=True)
def close_tear(y: float, x: float, row: Float) -> tuple[float, float]:
    """Where a point of the torn section was before it tore; NaN in the gap."""
    along, across, sway = _crack_frame(y, x, row)
    half = _gape(along, row)
    if half <= 0.0:
        return y, x
    size = abs(across)
    if size < half:
        return math.nan, math.nan
    before = size - half * math.exp(-(size - half) / (HEAL * row[5]))
    return _from_crack(along, math.copysign(before, across), sway, row)


@njit(cache=True)
def open_tear(y: float, x: float, row: Float) -> tuple[float, float]:
    """The inverse of :func:`close_tear`, by Newton's method on the distance across the crack."""
    along, across, sway = _crack_frame(y, x, row)
    half = _gape(along, row)
    if half <= 0.0:
        return y, x
    before = abs(across)
    after = before + half
    for _ in range(60):
        decay = half * math.exp(-(after - half) / (HEAL * row[5]))
        step = (after - decay - before) / (1.0 + decay / (HEAL * row[5]))
        after -= step
        if abs(step) < 1e-13:
            break
    return _from_crack(along, math.copysign(after, across), sway, row)


@njit(cache=True)
def _bend(y: float, x: float, waves: Float) -> tuple[float, float]:
    by, bx = 0.0, 0.0
    for i in range(waves.shape[0]):
        c = math.cos(waves[i, 0] * y + waves[i, 1] * x + waves[i, 2])
        by += waves[i, 3] * c
        bx += waves[i, 4] * c
    return by, bx


@njit(cache=True)
def _unbend(y: float, x: float, waves: Float) -> tuple[float, float]:
    """The q with ``q + bend(q) = (y, x)``, by Newton's method."""
    qy, qx = y, x
    for _ in range(60):
        ry, rx = y - qy, x - qx
        a, b, c, d = 1.0, 0.0, 0.0, 1.0
        for i in range(waves.shape[0]):
            phase = waves[i, 0] * qy + waves[i, 1] * qx + waves[i, 2]
            value, slope = math.cos(phase), -math.sin(phase)
            ry, rx = ry - waves[i, 3] * value, rx - waves[i, 4] * value
            a, b = a + waves[i, 3] * waves[i, 0] * slope, b + waves[i, 3] * waves[i, 1] * slope
            c, d = c + waves[i, 4] * waves[i, 0] * slope, d + waves[i, 4] * waves[i, 1] * slope
        det = a * d - b * c
        sy, sx = (d * ry - b * rx) / det, (a * rx - c * ry) / det
        qy, qx = qy + sy, qx + sx
        if abs(sy) + abs(sx) < 1e-12:
            break
    return qy, qx


@njit(cache=True, nogil=True)
def _to_block(points: Float, linear: Float, shift: Float, waves: Float, tear: Float, torn: bool, out: Float) -> None:
    for i in range(len(points)):
        y = linear[0, 0] * points[i, 0] + linear[0, 1] * points[i, 1] + shift[0]
        x = linear[1, 0] * points[i, 0] + linear[1, 1] * points[i, 1] + shift[1]
        if torn:
            y, x = close_tear(y, x, tear)
        by, bx = _bend(y, x, waves)
        out[i, 0], out[i, 1] = y + by, x + bx


@njit(cache=True, nogil=True)
def _to_section(points: Float, linear: Float, shift: Float, waves: Float, tear: Float, torn: bool, out: Float) -> None:
    for i in range(len(points)):
        y, x = _unbend(points[i, 0], points[i, 1], waves)
        if torn:
            y, x = open_tear(y, x, tear)
        y, x = y - shift[0], x - shift[1]
        out[i, 0] = linear[0, 0] * y + linear[0, 1] * x
        out[i, 1] = linear[1, 0] * y + linear[1, 1] * x


@dataclass(frozen=True, eq=False)
class Distortion:
    """The exact map between a section and its plane of the block, points (y, x) in mm.

    Section to block: ``p = q + bend(q)`` with ``q = close_tear(linear @ s + shift)``; ``bend`` is a sum of plane waves, rows
    (wave vector y, x in rad/mm, phase, amplitude y, x in mm).
    """

    linear: Float
    shift: Float
    waves: Float
    tear: Tear | None = None

    def _run(self, kernel: Any, points: ArrayLike, linear: Float) -> Float:
        points = np.asarray(points, float)
        flat = np.ascontiguousarray(points.reshape(-1, 2))
        out = np.empty_like(flat)
        row = self.tear.row() if self.tear else np.zeros(7)
        torn = self.tear is not None
        step = 1 << 15
        over_ranges(lambda a, b: kernel(flat[a:b], linear, self.shift, self.waves, row, torn, out[a:b]), len(flat), step)
        return out.reshape(points.shape)

    def to_block(self, points_mm: ArrayLike) -> Float:
        """Points (..., 2) of the section, mm from the centre of its top left pixel, in the block's plane; NaN inside a tear."""
        return self._run(_to_block, points_mm, self.linear)

    def to_section(self, points_mm: ArrayLike) -> Float:
        """Points (..., 2) of the block's plane in the section, exact to about 1e-10 mm."""
        return self._run(_to_section, points_mm, np.asarray(np.linalg.inv(self.linear), float))

    def moved(self, offset_mm: ArrayLike) -> Distortion:
        """The same for a section whose origin lies at ``offset_mm`` of this one's."""
        return Distortion(self.linear, self.shift + self.linear @ np.asarray(offset_mm, float), self.waves, self.tear)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without loss."""
        tear = asdict(self.tear) if self.tear else None
        return {"linear": self.linear.tolist(), "shift": self.shift.tolist(), "waves": self.waves.tolist(), "tear": tear}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Distortion:
        """The inverse of :meth:`to_dict`."""
        tear = record["tear"]
        return Distortion(
            np.array(record["linear"]),
            np.array(record["shift"]),
            np.array(record["waves"]).reshape(-1, 5),
            Tear(**{**tear, "start": tuple(tear["start"])}) if tear else None,
        )
