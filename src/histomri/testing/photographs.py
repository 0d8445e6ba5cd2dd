"""Photographs of the block's face before each section is cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.testing.specimen import CHANNELS, N_CHANNELS, Specimen
from histomri.testing.truth import SectionTruth, Truth, photograph_shape

Float = NDArray[np.float64]

# the cut shows most, and what lies beneath shows through the paraffin: depth in mm, weight
_SEEN = ((0.0, 0.74), (0.35, 0.13), (0.9, 0.08), (2.0, 0.05))
_PARAFFIN = np.array([0.80, 0.81, 0.78])
_COLOURS = {
    "cortex": (0.63, 0.47, 0.36), "white": (0.74, 0.65, 0.53), "caudate": (0.58, 0.42, 0.34), "putamen": (0.55, 0.41, 0.31),
    "pallidum": (0.66, 0.56, 0.42), "upper_layers": (-0.02, -0.02, -0.01), "stripe": (0.03, 0.03, 0.02),
    "texture": (0.025, 0.025, 0.02), "grain": (0.02, 0.02, 0.02), "vessel": (0.45, 0.18, 0.15),
}  # fmt: skip


def _light_table() -> Float:
    """Per channel the colour and, as a fourth column, how much it covers the paraffin, (14, 4)."""
    table = np.zeros((N_CHANNELS, 4))
    for name, colour in _COLOURS.items():
        table[CHANNELS.index(name), :3] = colour
    table[[*range(5), CHANNELS.index("vessel")], 3] = 1.0
    return table


def _tissue(specimen: Specimen, plane: Float, z: float, pixel_mm: float) -> Float:
    """Colour and cover, (y, x, 4), of the tissue seen from above at the cut ``z`` and beneath it."""
    seen = np.zeros((*plane.shape[:-1], 4))
    for depth, weight in _SEEN:
        points = np.concatenate([np.full((*plane.shape[:-1], 1), z + depth), plane], axis=-1)
        layer = specimen.mix(points, _light_table(), pixel_mm).astype(float)
        blur = 0.3 * depth / pixel_mm
        seen += weight * (cv2.GaussianBlur(layer, (0, 0), blur) if blur > 0.3 else layer)
    return seen


def _frame(plane: Float, width: float, seed: int) -> tuple[Float, NDArray[np.bool_]]:
    """Colour, (y, x, 3), of paraffin, mould and marks, all fixed to the block, and True on the mould."""
    y, x = plane[..., 0] / width, plane[..., 1] / width
    rng = np.random.default_rng([seed, 7])
    waves = rng.uniform(-14, 14, (8, 2))
    cloud = sum(np.cos(k[0] * y + k[1] * x + 6 * p) for k, p in zip(waves, rng.random(8), strict=True)) / 8
    colour = _PARAFFIN * (1 + 0.05 * cloud[..., None])
    mould = (np.abs(y) > 0.60) | (np.abs(x) > 0.64)
    brushed = 0.24 + 0.03 * np.sin(x * 140 + 4 * np.sin(9 * y)) + 0.04 * cloud
    colour = np.where(mould[..., None], brushed[..., None] * np.array([1.0, 1.02, 1.08]), colour)
    for my, mx, r in ((-0.65, -0.5, 0.018), (-0.65, 0.42, 0.018), (0.65, 0.55, 0.018), (0.65, -0.3, 0.018), (0.1, 0.69, 0.014)):
        mark = (y - my) ** 2 + (x - mx) ** 2 < r * r
        colour[mark] = (0.92, 0.92, 0.9)
    return colour, mould


def _lighting(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Float, Float]:
    """Gain, (y, x), that falls off unevenly, and glare, (y, x), that moves from photograph to photograph."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    a, b = rng.uniform(-0.02, 0.22), rng.uniform(-0.2, 0.04)
    gain = rng.uniform(0.9, 1.05) * (1 + a * x + b * y - 0.10 * (x * x + y * y))
    cy, cx, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), rng.uniform(0, np.pi)
    u = np.cos(turn) * (y - cy) + np.sin(turn) * (x - cx)
    v = -np.sin(turn) * (y - cy) + np.cos(turn) * (x - cx)
    glare = rng.uniform(0.15, 0.5) * np.exp(-((u / 0.28) ** 2) - (v / 0.1) ** 2)
    return gain, glare


def photograph(truth: Truth, section: SectionTruth) -> NDArray[np.uint8]:
    """The block's face when ``section`` was next to be cut, (y, x, 3)."""
    spec = truth.spec
    rng = np.random.default_rng([spec.seed, 8, int(section.id[1:])])
    shape = photograph_shape(spec)
    axes = [np.arange(n) * spec.blockface_pixel_mm for n in shape]
    photo = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    plane = photo @ section.camera[:2, :2].T + section.camera[:2, 2]
    colour, mould = _frame(plane, min(spec.size_mm[1:]), spec.seed)
    tissue = _tissue(truth.specimen, plane, section.position_mm, spec.blockface_pixel_mm)
    tissue[mould] = 0
    colour = colour * (1 - tissue[..., 3:]) + tissue[..., :3]
    knife = 0.012 * np.sin(plane[..., 1] * rng.uniform(6, 12) + rng.uniform(0, 6)) * ~mould
    gain, glare = _lighting(shape, rng)
    value = (colour + knife[..., None]) * gain[..., None] + glare[..., None] * np.where(mould, 0.4, 1.0)[..., None]
    value = cv2.GaussianBlur(value, (0, 0), 0.6) + rng.normal(scale=0.008, size=value.shape)
    return np.clip(value * 255 + 0.5, 0, 255).astype(np.uint8)


def make_photograph(truth: Truth, section: SectionTruth, path: Path) -> None:
    """Render and write one photograph as PNG. Raises ``OSError`` when it cannot be written."""
    if not cv2.imwrite(str(path), photograph(truth, section)[..., ::-1]):
        raise OSError(f"Could not write the photograph {path}.")
