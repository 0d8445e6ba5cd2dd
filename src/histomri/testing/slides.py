"""Slides of a digital block: stained sections with their faults, as pyramidal tiled TIFFs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from numba import njit
from numpy.typing import NDArray

from histomri.testing.noise import gradient_noise, hash3
from histomri.testing.specimen import CHANNELS
from histomri.testing.threads import over_ranges
from histomri.testing.truth import SectionTruth, Truth

Pixels = NDArray[np.uint8]
ROWS = 256
LEVEL_FACTOR = 4

# optical density (red, green, blue) of one unit of dye
_HAEMATOXYLIN = (0.65, 0.70, 0.29)
_EOSIN = (0.07, 0.79, 0.35)
_LUXOL_BLUE = (0.90, 0.45, 0.12)
_CRESYL_VIOLET = (0.55, 0.80, 0.35)

# dye taken up by each channel: haematoxylin and eosin stains grey more than white matter, luxol fast blue the other way round
_UPTAKE: dict[str, tuple[tuple[tuple[float, float, float], ...], dict[str, tuple[float, float]]]] = {
    "he": (
        (_HAEMATOXYLIN, _EOSIN),
        {
            "cortex": (0.24, 0.50), "white": (0.10, 0.37),
            "caudate": (0.30, 0.46), "putamen": (0.28, 0.53), "pallidum": (0.13, 0.44),
            "upper_layers": (0.14, 0.0), "stripe": (-0.05, 0.0), "lower_layers": (0.10, 0.0), "texture": (0.06, 0.09),
            "grain": (0.08, 0.10), "cells": (0.65, 0.0), "glia": (0.45, 0.0), "fibres": (0.0, 0.06), "vessel": (0.05, 0.7),
        },
    ),
    "lfb": (
        (_LUXOL_BLUE, _CRESYL_VIOLET),
        {
            "cortex": (0.10, 0.13), "white": (0.88, 0.05),
            "caudate": (0.17, 0.20), "putamen": (0.25, 0.18), "pallidum": (0.58, 0.12),
            "upper_layers": (-0.02, 0.12), "stripe": (0.20, 0.0), "lower_layers": (0.10, 0.08), "texture": (0.10, 0.03),
            "grain": (0.10, 0.05), "cells": (0.0, 0.75), "glia": (0.0, 0.30), "fibres": (0.16, 0.0), "vessel": (0.10, 0.10),
        },
    ),
}  # fmt: skip


def stain_table(stain: str) -> NDArray[np.float64]:
    """Optical density (14, 3) of red, green, blue for each channel.

    Raises ``KeyError`` for a stain other than ``he`` and ``lfb``.
    """
    dyes, uptake = _UPTAKE[stain]
    return np.asarray(np.array([uptake[name] for name in CHANNELS]) @ np.array(dyes), float)


class Look(NamedTuple):
    """How a slide came out: gain of the stain, fault (0 none, 1 pale, 2 a blotch) at y, x, radius in px, size in px, seed."""

    gain: float
    fault: int
    y: float
    x: float
    radius: float
    unit: float
    seed: int


@njit(cache=True, nogil=True)
def _develop(density: Any, top: int, look: Look, out: Any) -> None:
    """Optical density to noisy pixels: unevenly stained, faults included."""
    white = (244.0, 243.0, 241.0)
    cloud, blotch = 0.0, 0.0
    for i in range(density.shape[0]):
        for j in range(density.shape[1]):
            y, x = float(top + i), float(j)
            if j % 4 == 0:  # far smoother than 4 pixels
                cloud = gradient_noise(0.5, y / look.unit / 0.30, x / look.unit / 0.30, look.seed)
                r = math.hypot(y - look.y, x - look.x) / look.radius
                blotch = 1.1 / (1.0 + math.exp((r - 1.0 + 0.5 * cloud) * 14.0)) if look.fault == 2 else 0.0
            factor = look.gain * (1.0 + 0.12 * cloud)
            if look.fault == 1:
                factor *= 0.2 + 0.16 * cloud
            h = hash3(look.seed, top + i, j, 77)
            for c in range(3):
                dye = max(0.0, density[i, j, c]) * factor + blotch * (0.7 + 0.15 * c)
                value = white[c] * math.exp(-1.15 * dye) if dye > 0.0 else white[c]
                shot = float((h >> np.uint64(16 * c)) & np.uint64(255)) / 255.0 - 0.5
                out[i, j, c] = np.uint8(min(255.0, max(0.0, value + 5.0 * shot + 0.5)))


def _draw_look(section: SectionTruth, seed: int) -> Look:
    rng = np.random.default_rng([seed, 5, int(section.id[1:])])
    height, width = section.shape
    gain, noise = float(rng.uniform(0.85, 1.15)), int(rng.integers(1 << 30))
    y, x, radius = (np.array([height, width, min(height, width)]) * rng.uniform((0.4, 0.4, 0.24), (0.6, 0.6, 0.3))).tolist()
    fault = {"pale": 1, "blotch": 2}.get(section.bad or "", 0)
    return Look(gain, fault, y, x, radius, float(height), noise)


def render_section(truth: Truth, section: SectionTruth) -> Pixels:
    """The stained section as it lies on its slide, (y, x, 3), without dust and handwriting."""
    height, width = section.shape
    table, look = stain_table(section.stain), _draw_look(section, truth.spec.seed)
    out = np.empty((height, width, 3), np.uint8)
    columns = np.arange(width) * section.pixel_size_mm
    for top in range(0, height, ROWS):
        rows = np.arange(top, min(height, top + ROWS)) * section.pixel_size_mm
        points = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
        density = truth.specimen.mix(truth.section_to_block(section.id, points), table, section.pixel_size_mm)
        _develop_rows(density, top, look, out)
    return out


def _develop_rows(density: NDArray[np.float32], top: int, look: Look, out: Pixels) -> None:
    """Develop the rows from ``top`` on, in threads."""
    part = out[top : top + len(density)]
    over_ranges(lambda a, b: _develop(density[a:b], top + a, look, part[a:b]), len(density), 64)


def _stroke(rng: np.random.Generator, start: Any, size: float) -> Any:
    """A pen stroke, (n, 2) of x, y: a loop that drifts to the right."""
    t = np.linspace(0, 1, 40)
    a, b, c = rng.uniform(0.5, 1.0, 3)
    loop = np.stack([t * 1.2 + 0.35 * a * np.sin(9 * t * b), -0.5 * np.sin(7 * t * c + a)], axis=-1)
    return np.asarray(start) + size * loop


def _write_by_hand(pixels: Pixels, rng: np.random.Generator, unit: float) -> None:
    """Letters in ink along one edge of the slide."""
    height, width = pixels.shape[:2]
    ink = [(40, 40, 110), (25, 25, 30), (110, 35, 50)][int(rng.integers(3))]
    size = 0.028 * unit
    y = size * 0.9 if rng.random() < 0.5 else height - size * 0.9
    x = width * rng.uniform(0.05, 0.55)
    for letter in range(int(rng.integers(3, 7))):
        stroke = _stroke(rng, (x + 1.6 * size * letter, y), size)
        cv2.polylines(pixels, [np.round(stroke * 16).astype(np.int32)], False, ink, max(1, round(0.004 * unit)), cv2.LINE_AA, 4)


def _sprinkle_dust(pixels: Pixels, rng: np.random.Generator, unit: float) -> None:
    """Specks and a hair, anywhere on the slide."""
    height, width = pixels.shape[:2]
    for _ in range(int(rng.integers(10, 40))):
        centre = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        axes = tuple(int(max(1, a)) for a in rng.uniform(0.0008, 0.004, 2) * unit)
        grey = int(rng.uniform(40, 140))
        cv2.ellipse(pixels, centre, axes, rng.uniform(0, 180), 0, 360, (grey, grey, grey - 10), -1, cv2.LINE_AA)
    hair = _stroke(rng, (rng.uniform(0.1, 0.8) * width, rng.uniform(0.05, 0.95) * height), 0.08 * unit)
    line = np.round(hair * 16).astype(np.int32)
    cv2.polylines(pixels, [line], False, (90, 80, 75), max(1, round(0.0015 * unit)), cv2.LINE_AA, 4)


def _draw_glass_edge(pixels: Pixels, rng: np.random.Generator, unit: float) -> None:
    """The edge of the glass: a grey strip with a dark line along one side."""
    side = int(rng.integers(4))
    view = np.rot90(pixels, side)
    depth = max(2, round(rng.uniform(0.006, 0.016) * unit))
    view[:depth] = (view[:depth] * 0.72).astype(np.uint8)
    view[depth : depth + max(1, round(0.002 * unit))] = 70


def add_artefacts(pixels: Pixels, section: SectionTruth, seed: int) -> None:
    """Draw onto the slide, in place, what slides have besides tissue; about a third has each of dust, edge and handwriting."""
    rng = np.random.default_rng([seed, 6, int(section.id[1:])])
    unit = float(min(pixels.shape[:2]))
    for draw, chance in ((_sprinkle_dust, 0.4), (_draw_glass_edge, 0.35), (_write_by_hand, 0.35)):
        if rng.random() < chance:
            draw(pixels, rng, unit)


def pyramid(pixels: Pixels) -> list[Pixels]:
    """Levels by area averages over 4 x 4 pixels, until one fits into 256 pixels; a ragged rest is dropped, as scanners do."""
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 256:
        last = levels[-1]
        height, width = last.shape[0] // LEVEL_FACTOR, last.shape[1] // LEVEL_FACTOR
        whole = last[: height * LEVEL_FACTOR, : width * LEVEL_FACTOR]
        levels.append(np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8))
    return levels


def write_slide(path: Path, pixels: Pixels, pixel_size_mm: float) -> None:
    """Write a tiled JPEG pyramid that openslide opens, with its pixel size."""
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(pyramid(pixels)):
            per_cm = 10.0 / pixel_size_mm / LEVEL_FACTOR**i
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if i else 0,
                metadata=None,
            )


def make_slide(truth: Truth, section: SectionTruth, path: Path) -> None:
    """Render one section with its artefacts and write its slide."""
    pixels = render_section(truth, section)
    add_artefacts(pixels, section, truth.spec.seed)
    write_slide(path, pixels, section.pixel_size_mm)


def label_image(truth: Truth, section: SectionTruth, factor: int) -> Pixels:
    """Exact labels of a section at the centres of pixels ``factor`` times as large as level 0, (y // factor, x // factor)."""
    shape = np.array(section.shape) // factor
    axes = [((np.arange(n) + 0.5) * factor - 0.5) * section.pixel_size_mm for n in shape]
    return truth.specimen.labels(truth.section_to_block(section.id, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)))
