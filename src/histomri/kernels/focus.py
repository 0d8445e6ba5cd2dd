"""How sharp an image of tissue is, and how it is stained: measures of one section, to be compared with its peers'.

Sharpness is the root of the ratio of the energies of two bands of optical density, the finest (what a Gaussian of 1 pixel takes
away) and the next (Gaussians of 1 and 4 pixels). Stain and contrast cancel; the camera's noise, known from the glass, is taken
off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.kernels.pieces import Float32, blurred

MIN_ENERGY = 2.5e-5  # of the coarser band, (optical density)^2: flatter tiles cannot tell
FINE_PX, COARSE_PX = 1.0, 4.0
MIN_TILES = 12
QUIET = 10.0
SOFT = 0.5  # a tile is out of focus below this share of the section's sharpest tiles


@dataclass(frozen=True)
class Focus:
    """``sharpness`` is the median over the tiles, ``soft_share`` how many of them are out of focus.

    None where fewer than ``MIN_TILES`` can tell.
    """

    sharpness: float | None = None
    soft_share: float | None = None


@dataclass(frozen=True)
class StainQuality:
    """Of the tissue: mean optical density, saturation (its spread over the channels by its mean), range (5 to 95 percent)."""

    density: float
    saturation: float
    dynamic_range: float


def band_energies(density: Float32) -> tuple[float, float]:
    """Mean squares of the fine and of the coarse band of a tile of optical density, (y, x), a margin left out."""
    first, second = blurred(density, FINE_PX), blurred(density, COARSE_PX)
    margin = min(int(2 * COARSE_PX), min(density.shape) // 4)
    inner = (slice(margin, -margin or None),) * 2
    return float(np.mean((density - first)[inner] ** 2)), float(np.mean((first - second)[inner] ** 2))


def measure_focus(tissue: Iterable[Float32], glass: Iterable[Float32]) -> Focus:
    """Focus of a section from tiles of optical density (y, x) in its tissue, and of its glass for the noise (may be none)."""
    empty = [band_energies(tile) for tile in glass]
    # dust and ink lie on some of the glass: the quietest tiles are the camera's
    noise = np.percentile(empty, QUIET, axis=0) if empty else np.zeros(2)
    energies = np.array([band_energies(tile) for tile in tissue]).reshape(-1, 2) - noise
    tells = energies[:, 1] > MIN_ENERGY
    if tells.sum() < MIN_TILES:
        return Focus()
    sharpness = np.sqrt(np.maximum(energies[tells, 0], 0) / energies[tells, 1])
    soft = sharpness < SOFT * np.percentile(sharpness, 90)
    return Focus(float(np.median(sharpness)), float(soft.mean()))


def measure_stain(density: NDArray[Any]) -> StainQuality:
    """Stain quality from the optical density (n, c) of the tissue's pixels."""
    grey = density.mean(axis=-1)
    low, high = np.percentile(grey, (5, 95))
    spread = float(np.mean(density.std(axis=-1)))
    return StainQuality(float(grey.mean()), spread / max(float(grey.mean()), 1e-3), float(high - low))


def white_balance(background: Sequence[float]) -> tuple[float, ...]:
    """The background of each channel over the mean of all: 1 each where the glass is neutral."""
    mean = float(np.mean(background))
    return tuple(float(level) / mean for level in background) if mean > 0 else tuple(1.0 for _ in background)
