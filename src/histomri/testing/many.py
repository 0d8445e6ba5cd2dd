"""A slide with several sections in rows, as technicians mount them: roughly aligned, turned, some in pieces, with debris."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
GLASS, STAIN = 243.0, (185.0, 110.0, 175.0)


@dataclass(frozen=True, eq=False)
class ManySections:
    """A slide, uint8 RGB (y, x, 3), and the labels of its sections, (y, x): 0 glass, 1 to n row by row from the left."""

    pixels: Pixels
    labels: NDArray[np.int32]


def draw_sections(
    rows: int = 2, columns: int = 3, cell_px: int = 240, seed: int = 0, jitter: float = 0.06, split: int = 0, debris: int = 12
) -> ManySections:
    """Draw ``rows`` x ``columns`` sections in cells of ``cell_px``, off their places by up to ``jitter`` of a cell.

    Section ``split`` (counted from 1; 0 is none) comes in two halves and a fragment; ``debris`` specks lie anywhere.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((rows * cell_px, columns * cell_px), np.int32)
    for n in range(rows * columns):
        row, column = divmod(n, columns)
        centre = ((np.array([column, row]) + 0.5 + rng.uniform(-jitter, jitter, 2)) * cell_px).tolist()
        shape = _shape(rng, labels.shape, centre, 0.32 * cell_px * rng.uniform(0.85, 1.1))
        if n + 1 == split:
            shape = _in_pieces(shape, centre, 0.03 * cell_px)
        labels[shape] = n + 1
    pixels = rng.normal(GLASS, 1.5, (*labels.shape, 3))
    texture = cv2.GaussianBlur(rng.normal(0, 40, labels.shape), (0, 0), 2)[..., None]
    pixels = np.where(labels[..., None] > 0, np.array(STAIN) + texture, pixels)
    for x, y in rng.uniform((0, 0), labels.shape[::-1], (debris, 2)):
        cv2.circle(pixels, (int(x), int(y)), int(rng.integers(1, max(2, cell_px // 60))), (110.0, 105.0, 100.0), -1)
    return ManySections(np.clip(pixels, 0, 255).astype(np.uint8), labels)


def _shape(rng: np.random.Generator, size: tuple[int, int], centre: list[float], radius: float) -> NDArray[np.bool_]:
    """A blob with lobes, bool (y, x)."""
    t = np.linspace(0, 2 * np.pi, 90)
    r = radius * (1 + sum(rng.uniform(0.02, 0.08) * np.cos(k * t + rng.uniform(0, 6)) for k in (2, 3, 5)))
    outline = np.stack([centre[0] + 1.15 * r * np.cos(t), centre[1] + 0.85 * r * np.sin(t)], axis=-1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [np.round(outline).astype(np.int32)], 1).astype(bool)


def _in_pieces(shape: NDArray[np.bool_], centre: list[float], gap: float) -> NDArray[np.bool_]:
    """The section without a slit down its middle and one across its left half."""
    y, x = np.nonzero(shape)
    keep = (np.abs(x - centre[0]) > gap) & ~((np.abs(y - centre[1] - 4 * gap) < gap / 2) & (x < centre[0]))
    out = np.zeros_like(shape)
    out[y[keep], x[keep]] = True
    return out
