"""A start that does not fail: every rotation, both faces and every shift of one section on another, by FFT correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from histomri.kernels.interpolate import warp_2d
from histomri.registration.samples import Channels
from histomri.registration.together import together

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A start: ``matrix`` (3, 3) maps fixed mm to moving mm; ``score`` is the cosine of the images, higher is better."""

    matrix: Float
    score: float
    angle_deg: float
    mirrored: bool


def rigid_search(
    fixed: Channels, moving: Channels, angles_deg: Float, mirrors: tuple[bool, ...] = (False, True), keep: int = 4
) -> list[Candidate]:
    """The best ``keep`` distinct rigid starts over ``angles_deg``, best first, of both faces together.

    Both grids must share one isotropic spacing. The score of a rotation is the largest value over all shifts d of
    ``sum F(p) M(R p + d) / (|F| |M|)`` over all channels, exact (zero-padded) linear correlation.
    """
    spacing = float(fixed.grid.spacing_mm[0])
    middle_fixed, middle_moving = _centroid(fixed), _centroid(moving)
    size = fft.next_fast_len(int(np.ceil(_reach(fixed, middle_fixed) + _reach(moving, middle_moving))) * 2 + 2)
    shape = (size, size)
    reference = np.conj(fft.rfft2(_canvas(fixed, middle_fixed, np.eye(2), shape)))
    norm_fixed = float(np.linalg.norm(fixed.data))
    norm_moving = float(np.linalg.norm(moving.data))
    found: list[Candidate] = []
    for mirrored in mirrors:
        for angle in angles_deg:
            linear = rotation(angle, mirrored)
            turned = fft.rfft2(_canvas(moving, middle_moving, linear, shape))
            surface = fft.irfft2((reference * turned).sum(axis=0), s=shape)
            peak = np.array(np.unravel_index(int(surface.argmax()), shape))
            score = float(surface[tuple(peak)]) / (norm_fixed * norm_moving + 1e-12)
            shift = np.where(peak > size // 2, peak - size, peak) * spacing
            # canvas points: M_turned(c + d) = M(middle + linear d), so fixed offset d meets moving offset linear (d + shift)
            offset = middle_moving + linear @ (shift - middle_fixed)
            matrix = np.eye(3)
            matrix[:2, :2], matrix[:2, 2] = linear, offset
            found.append(Candidate(matrix, score, float(angle), mirrored))
    return _distinct(found, keep, min_angle=15.0)


def similarity_search(
    fixed: Channels, moving_at: Callable[[float], Channels], scales: tuple[float, ...], step_deg: float, keep: int = 8
) -> list[Candidate]:
    """The best ``keep`` distinct starts over all angles, both faces and ``scales`` (moving lengths over fixed ones), best first.

    ``moving_at(s)`` gives the moving channels at s times the fixed spacing. The score is that of :func:`rigid_search`. Half turns
    and mirror images of the moving image are taken of the fixed one instead, ``sum F(p) M(G (p + d)) = sum F(G p) M(p + G d)``
    for ``G = diag(+-1, +-1)``, so that only half a turn of the moving image has to be transformed.
    """
    angles = np.arange(0.0, 180.0, step_deg)

    def of(scale: float) -> list[Candidate]:
        return _of_scale(fixed, moving_at(scale), scale, angles)

    found = together([partial(of, scale) for scale in scales])
    return _distinct([candidate for each in found for candidate in each], keep, min_angle=1.5 * step_deg)


def _of_scale(fixed: Channels, moving: Channels, scale: float, angles_deg: Float) -> list[Candidate]:
    """The best shift of each angle and face at one scale."""
    spacing = float(fixed.grid.spacing_mm[0])
    centre, middle = _centroid(fixed), _centroid(moving)
    size = fft.next_fast_len(2 * int(np.ceil(_reach(fixed, centre) + _reach(moving, middle))) + 2, real=True)
    turned = _turned(moving, middle, angles_deg, size)
    spectra = fft.rfft2(turned)
    norms = float(np.linalg.norm(fixed.data)) * np.sqrt((turned.astype(np.float64) ** 2).sum(axis=(1, 2, 3))) + 1e-12
    found: list[Candidate] = []
    for flip in (np.diag([1.0, 1.0]), np.diag([-1.0, -1.0]), np.diag([1.0, -1.0]), np.diag([-1.0, 1.0])):
        reference = np.conj(fft.rfft2(_canvas(fixed, centre, flip, (size, size))))
        surfaces = fft.irfft2((reference * spectra).sum(axis=1), s=(size, size)).reshape(len(angles_deg), -1)
        peaks = surfaces.argmax(axis=1)
        shifts = np.stack(np.unravel_index(peaks, (size, size)), axis=-1)
        shifts = np.where(shifts > size // 2, shifts - size, shifts) * spacing @ flip
        scores = surfaces[np.arange(len(peaks)), peaks] / norms
        for angle, shift, score in zip(angles_deg, shifts, scores, strict=True):
            linear = scale * rotation(angle) @ flip
            found.append(_candidate(linear, middle + linear @ (shift - centre), float(score)))
    return found


def _turned(moving: Channels, middle: Float, angles_deg: Float, size: int) -> NDArray[np.float32]:
    """The canvases (n, c, size, size) of angles from 0 to 180: the second half from the first by a quarter turn, where it is."""
    half = len(angles_deg) // 2
    is_even = 2 * half == len(angles_deg) and np.allclose(angles_deg[half:] - 90, angles_deg[:half])
    first = np.stack([_canvas(moving, middle, rotation(a), (size, size)) for a in angles_deg[: half if is_even else None]])
    if not is_even:
        return first
    # about the pixel size // 2: of an even number of pixels the first has no partner
    back = np.roll(first[..., ::-1], 1 - size % 2, axis=-1)
    return np.concatenate([first, np.swapaxes(back, -1, -2)])


def _candidate(linear: Float, shift: Float, score: float) -> Candidate:
    """With the angle and face that :func:`rotation` would take."""
    (a, b), (c, d) = linear.tolist()
    mirrored = a * d < b * c
    angle = np.degrees(np.arctan2(b, a)) % 360
    return Candidate(np.array([[a, b, shift[0]], [c, d, shift[1]], [0.0, 0.0, 1.0]]), score, float(angle), mirrored)


def rotation(angle_deg: float, mirrored: bool = False) -> Float:
    """(2, 2) rotation in (y, x), followed on the moving side by a flip of x when mirrored."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn = np.array([[c, s], [-s, c]])
    return np.diag([1.0, -1.0]) @ turn if mirrored else turn


def _centroid(channels: Channels) -> Float:
    outline = np.maximum(channels.data[..., -1], 0)
    total = float(outline.sum())
    if total <= 0:
        return channels.grid.centre_mm
    index = [float((outline.sum(axis=1 - a) * np.arange(n)).sum()) / total for a, n in enumerate(outline.shape)]
    return channels.grid.to_world(np.array(index))


def _reach(channels: Channels, middle: Float) -> float:
    """Largest distance in pixels of a tissue pixel from the centroid."""
    nodes = np.argwhere(channels.data[..., -1] > 0.05)
    if not len(nodes):
        return float(max(channels.grid.shape))
    distance = np.linalg.norm(channels.grid.to_world(nodes) - middle, axis=1)
    return float(distance.max()) / float(channels.grid.spacing_mm[0])


def _canvas(channels: Channels, middle: Float, linear: Float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The image turned by ``linear`` about its centroid, which comes to lie in the middle of the canvas."""
    spacing = float(channels.grid.spacing_mm[0])
    centre = (np.array(shape) // 2).astype(float)
    matrix = np.eye(3)
    matrix[:2, :2] = linear * spacing
    matrix[:2, 2] = middle - linear @ centre * spacing
    out = warp_2d(channels.data, channels.grid.world_to_index @ matrix, shape)
    return np.ascontiguousarray(np.moveaxis(out, -1, 0))


def _distinct(found: list[Candidate], keep: int, min_angle: float) -> list[Candidate]:
    """The best of each neighbourhood of angles of one face."""
    out: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: -c.score):
        apart = (abs((candidate.angle_deg - o.angle_deg + 180) % 360 - 180) for o in out if o.mirrored == candidate.mirrored)
        if all(a >= min_angle for a in apart):
            out.append(candidate)
        if len(out) == keep:
            break
    return out
