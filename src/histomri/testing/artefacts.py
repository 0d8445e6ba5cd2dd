"""What lies on slides besides tissue, drawn onto any slide in place: pens, bubbles, coverslips, dust, uneven light.

Pixels are uint8 RGB (y, x, 3) on a bright background; lengths are shares of the shorter side. The digital block does not
draw these: its own artefacts are in :mod:`histomri.testing.slides`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PENS = {"blue": (25, 60, 165), "green": (25, 125, 60), "red": (205, 35, 45), "black": (25, 25, 30)}


def shade(pixels: Pixels, transmission: NDArray[np.floating]) -> None:
    """Let only ``transmission`` (y, x) or (y, x, 3) of the light through, in place (Beer and Lambert)."""
    share = transmission if transmission.ndim == 3 else transmission[..., None]
    pixels[...] = np.clip(pixels * share + 0.5, 0, 255).astype(np.uint8)


def pen_line(pixels: Pixels, points: ArrayLike, pen: str, width: float = 0.02) -> None:
    """A stroke of a pen (a key of ``PENS``) through ``points`` (n, 2) of x, y in shares of width and height."""
    height, side = pixels.shape[:2]
    corners = np.round(np.asarray(points, float) * (side, height) * 16).astype(np.int32)
    cover = np.zeros((height, side), np.uint8)
    cv2.polylines(cover, [corners], False, 255, max(1, round(width * min(height, side))), cv2.LINE_AA, 4)
    ink = np.array(PENS[pen]) / 245.0
    shade(pixels, 1 - (cover / 255.0)[..., None] * (1 - ink))


def pen_ring(pixels: Pixels, tissue: Mask, pen: str, width: float = 0.02, gap: float = 0.03) -> None:
    """A ring drawn by hand around the tissue, ``gap`` away from it, here and there over it."""
    y, x = np.nonzero(tissue)
    centre, half = (x.mean(), y.mean()), (np.ptp(x) / 2, np.ptp(y) / 2)
    t = np.linspace(0, 2 * np.pi, 120)
    wobble = 1 + gap + 0.04 * np.sin(3 * t + 1) + 0.02 * np.sin(7 * t)
    ring = np.stack([centre[0] + half[0] * wobble * np.cos(t), centre[1] + half[1] * wobble * np.sin(t)], axis=-1)
    pen_line(pixels, ring / pixels.shape[1::-1], pen, width)


def pen_text(pixels: Pixels, text: str, place: tuple[float, float], pen: str, size: float = 0.1) -> None:
    """Letters of a height of ``size`` whose lower left corner lies at ``place`` (x, y in shares of width and height)."""
    height, side = pixels.shape[:2]
    cover = np.zeros((height, side), np.uint8)
    scale = size * min(height, side) / 21.0
    at = (round(place[0] * side), round(place[1] * height))
    cv2.putText(cover, text, at, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, scale, 255, max(1, round(2.2 * scale)), cv2.LINE_AA)
    shade(pixels, 1 - (cover / 255.0)[..., None] * (1 - np.array(PENS[pen]) / 245.0))


def bubble(pixels: Pixels, centre: tuple[float, float], radius: float = 0.12) -> None:
    """A bubble of air under the coverslip: a dark rim with a bright inner line, a slightly brighter inside."""
    height, side = pixels.shape[:2]
    y, x = np.mgrid[:height, :side]
    r = np.hypot(y - centre[1] * height, x - centre[0] * side) / (radius * min(height, side))
    rim = 0.6 * np.exp(-(((r - 1.0) / 0.045) ** 2)) - 0.06 * np.exp(-(((r - 0.87) / 0.05) ** 2))
    shade(pixels, (1 - rim) * np.where(r < 1, 1.015, 1.0))


def coverslip(pixels: Pixels, place: float = 0.85, darker: float = 0.06, tilt: float = 0.01) -> None:
    """The edge of the coverslip across the slide at ``place``: a thin dark line, the glass beyond it ``darker``."""
    height, side = pixels.shape[:2]
    y, x = np.mgrid[:height, :side]
    beyond = x / side - place - tilt * (y / height - 0.5)
    line = 0.3 * np.exp(-((beyond * side / max(1.0, 0.003 * min(height, side))) ** 2))
    shade(pixels, (1 - line) * np.where(beyond > 0, 1 - darker, 1.0))


def dust(pixels: Pixels, number: int = 40, seed: int = 0) -> None:
    """Grey specks of up to 0.8 % of the shorter side, and a hair."""
    rng = np.random.default_rng(seed)
    height, side = pixels.shape[:2]
    unit = min(height, side)
    cover = np.zeros((height, side), np.uint8)
    for x, y, size in zip(rng.uniform(0, side, number), rng.uniform(0, height, number), rng.uniform(1, 8, number), strict=True):
        cv2.circle(cover, (int(16 * x), int(16 * y)), int(8e-3 * size * unit), 255, -1, cv2.LINE_AA, 4)
    start, t = rng.uniform(0.1, 0.8, 2) * (side, height), np.linspace(0, 1, 30)
    hair = start + 0.12 * unit * np.stack([t, 0.4 * np.sin(5 * t)], axis=-1)
    cv2.polylines(cover, [np.round(hair * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4)
    shade(pixels, 1 - 0.6 * cover / 255.0)


def vignette(pixels: Pixels, depth: float = 0.1) -> None:
    """Light that falls off towards the corners by ``depth``, a little off centre."""
    height, side = pixels.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height) - 0.15, np.linspace(-1, 1, side) + 0.1, indexing="ij")
    shade(pixels, 1 - depth * (y**2 + x**2) / 2)


def blurred(pixels: Pixels, sigma_px: float) -> Pixels:
    """The slide out of focus: smoothed by a Gaussian."""
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)


def trap_list(tissue: Mask) -> dict[str, Callable[[Pixels], None]]:
    """One of each trap for a slide with that tissue, by name; each draws in place."""
    across = [(0.05, 0.3), (0.3, 0.45), (0.6, 0.42), (0.97, 0.6)]
    traps: dict[str, Callable[[Pixels], None]] = {}
    for pen in PENS:
        traps[f"{pen} stroke over tissue"] = lambda px, pen=pen: pen_line(px, across, pen)  # type: ignore[misc]
        traps[f"{pen} ring"] = lambda px, pen=pen: pen_ring(px, tissue, pen)  # type: ignore[misc]
        traps[f"{pen} words"] = lambda px, pen=pen: pen_text(px, "No 4", (0.08, 0.2), pen)  # type: ignore[misc]
    traps["bubble on glass"] = lambda px: bubble(px, (0.12, 0.14), 0.1)
    traps["bubble over the edge"] = lambda px: bubble(px, (0.2, 0.3), 0.12)
    traps["coverslip"] = coverslip
    traps["dust"] = dust
    traps["vignette"] = vignette
    return traps
