"""Photographs of a block: brought onto each other, uneven light evened, the cut surface found.

Arrays are float32 RGB (y, x, 3) in 0 to 1 of one camera position; masks are boolean, True on the cut tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from histomri.core import Grid, Image
from histomri.kernels.features import smooth
from histomri.kernels.threshold import otsu
from histomri.registration.channels import make_channels
from histomri.registration.linear import fit_linear
from histomri.registration.samples import Channels, draw_samples

Float = NDArray[np.float64]
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
LIGHT_ORDER = 3
FRAME_FACTORS = (4, 2, 1)
MIN_GAIN = 0.01


@dataclass(frozen=True, eq=False)
class Alignment:
    """``matrix`` (3, 3) maps mm of the common frame to mm of one photograph; ``gain`` is the relative fall of the cost outside
    the tissue; a photograph whose frame shows nothing to hold on to keeps the identity."""

    matrix: Float
    gain: float


def background_chroma(photo: Array) -> Float:
    """Chromaticity (r, g) of what surrounds the tissue: the median over a ring of a tenth of the photograph."""
    height, width = photo.shape[:2]
    ring = np.ones((height, width), bool)
    ring[height // 10 : -(height // 10) or None, width // 10 : -(width // 10) or None] = False
    return np.asarray(np.median(_chroma(photo)[ring], axis=0))


def _chroma(photo: Array) -> Array:
    """``(r, g) = (R, G) / (R + G + B)``, which a change of light does not move; dark pixels tend to grey."""
    total = photo.sum(axis=-1, keepdims=True) + np.float32(0.09)
    out: Array = (photo[..., :2] + np.float32(0.03)) / total
    return out


def tissue_cue(photo: Array, background: Float) -> Array:
    """How far the colour is from the background's, (y, x); for grey photographs how far its log-luminance is."""
    colour = np.linalg.norm(smooth_rgb(_chroma(photo), 1.0) - background.astype(np.float32), axis=-1)
    if float(np.percentile(colour, 95)) > 0.015:
        return np.asarray(colour, np.float32)
    light = np.log(photo.mean(axis=-1) + np.float32(0.02))
    height = len(light)
    edge = np.concatenate([light[: height // 10].ravel(), light[-(height // 10) :].ravel()])
    out: Array = np.abs(smooth(light, 1.0) - np.float32(np.median(edge)))
    return out


def smooth_rgb(values: Array, sigma_px: float) -> Array:
    """Gaussian over every channel of (y, x, c)."""
    return np.stack([smooth(values[..., c], sigma_px) for c in range(values.shape[-1])], axis=-1)


def cut_surface(cue: Array, threshold: float, min_share: float = 0.0005) -> Mask:
    """Tissue at the cut: the cue above the threshold, small holes closed, specks and what belongs to the rim left out.

    What lies deep under the cut shows through more faintly than the cut tissue, so the threshold must lie half way up to the
    tissue's own level and not at the foot of the shadow.
    """
    mask = ndimage.binary_opening(cue > threshold, iterations=1)
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.asarray(mask, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= min_share * mask.size
    # the mould or the table reaches the rim along most of a side; tissue that is only cut off there does not
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        counts = np.bincount(side, minlength=len(sizes))
        keep &= counts < 0.8 * len(side)
    closed = ndimage.binary_closing(np.pad(keep[labels], 2), iterations=1)
    return np.asarray(closed[2:-2, 2:-2], bool)


def surface_threshold(cues: list[Array]) -> float:
    """One threshold for all photographs: half way between background and the level of the cut tissue (its 75th percentile)."""
    values = np.concatenate([c[::3, ::3].ravel() for c in cues])
    rough = otsu(values)
    low, high = float(np.median(values[values <= rough])), float(np.percentile(values[values > rough], 75))
    return low + 0.5 * (high - low)


def even_light(photo: Array, tissue: Mask, background: Mask) -> Array:
    """The photograph over its light: a smooth gain of order 3 fitted robustly to the log-luminance of the background material.

    ``background`` marks the material whose own brightness is even (paraffin, table); glare, far brighter than the fit, has
    no say. The mean luminance of the background is kept, so photographs stay comparable.
    """
    use = background & ~ndimage.binary_dilation(tissue, iterations=3)
    if use.sum() < 500:
        return photo
    light = np.log(photo.mean(axis=-1) + np.float32(1e-3))
    terms = _polynomial(photo.shape[:2])
    fit = _robust_fit(terms[use], light[use])
    gain = np.exp(terms @ fit - float(np.median(light[use])))
    return np.asarray(np.clip(photo / np.clip(gain, 0.2, 5)[..., None], 0, 1.5), np.float32)


def _polynomial(shape: tuple[int, int]) -> Float:
    """Monomials up to the third order over -1 to 1: (y, x, 10)."""
    y, x = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return np.stack([y**i * x**j for i in range(LIGHT_ORDER + 1) for j in range(LIGHT_ORDER + 1 - i)], axis=-1)


def _robust_fit(terms: Float, values: Array) -> Float:
    """Least squares with Tukey's weights, so that glare and specks have no say."""
    step = max(1, len(values) // 20_000)
    a, b = terms[::step], values[::step].astype(float)
    weight = np.ones(len(b))
    fit = np.zeros(a.shape[1])
    for _ in range(8):
        root = np.sqrt(weight)[:, None]
        fit = np.linalg.lstsq(a * root, b * root[:, 0], rcond=None)[0]
        residual = b - a @ fit
        spread = 4.685 * (1.4826 * float(np.median(np.abs(residual))) + 1e-4)
        weight = np.clip(1 - (residual / spread) ** 2, 0, None) ** 2 + 1e-6
    return fit


def frame_levels(photo: Array, ignore: Mask, grid: Grid) -> list[Channels]:
    """Structure of everything but the tissue at a quarter, half and full resolution, coarse to fine."""
    out = []
    for factor in FRAME_FACTORS:
        level = grid.downsample(factor)
        size = level.shape[::-1]
        padded = _padded(photo, factor)
        hidden = _padded(ignore.astype(np.float32), factor)
        light = cv2.resize(padded, size, interpolation=cv2.INTER_AREA) if factor > 1 else photo
        covered = cv2.resize(hidden, size, interpolation=cv2.INTER_AREA) if factor > 1 else hidden
        out.append(_frame_channels(np.asarray(light, np.float32), np.asarray(covered) > 0.05, level))
    return out


def _padded(data: Array, factor: int) -> Array:
    pad = [(0, -n % factor) for n in data.shape[:2]] + [(0, 0)] * (data.ndim - 2)
    return np.pad(data, pad, mode="edge")


def _frame_channels(photo: Array, ignore: Mask, grid: Grid) -> Channels:
    light = np.log(photo.mean(axis=-1) + np.float32(0.05)).astype(np.float32)
    everywhere = np.ones(light.shape, bool)
    out = make_channels(Image(grid, light), Image(grid, everywhere), "structure")
    weight = (~ndimage.binary_dilation(ignore, iterations=2)).astype(np.float32)
    # structure of a bland background is noise; what holds a photograph in place is its edges
    gradient = ndimage.gaussian_gradient_magnitude(light, 1.5)
    weight *= np.clip(gradient / (2 * float(np.median(gradient)) + 1e-6) - 0.5, 0, 1).astype(np.float32)
    return Channels(grid, out.data, weight)


def align_photograph(fixed: list[Channels], moving: list[Channels], max_mm: float) -> Alignment:
    """Small rigid motion of a photograph against the reference, both as :func:`frame_levels`; identity where it does not pay."""
    if float((fixed[-1].weight > 0.2).mean()) < 0.002:
        return Alignment(np.eye(3), 0.0)
    matrix = np.eye(3)
    matrix[:2, 2] = _coarse_shift(fixed[0], moving[0], max_mm)
    starts = [matrix, np.eye(3)]
    for still, other in zip(fixed, moving, strict=True):
        samples = draw_samples(still, 40_000)
        results = [fit_linear(samples, other, first, "rigid", iterations=40) for first in starts]
        best = min(results, key=lambda r: r.cost)
        starts = [best.matrix]
    unmoved = fit_linear(samples, other, np.eye(3), "rigid", iterations=0)
    gain = 1 - best.cost / max(unmoved.cost, 1e-12)
    middle = np.append(fixed[-1].grid.centre_mm, 1.0)
    moved = float(np.linalg.norm((best.matrix @ middle - middle)[:2]))
    if gain < MIN_GAIN or moved > max_mm:
        return Alignment(np.eye(3), gain)
    return Alignment(best.matrix, gain)


def _coarse_shift(fixed: Channels, moving: Channels, max_mm: float) -> Float:
    """Shift in mm that brings the structure channels together, by FFT correlation over the edges of both."""
    a = fixed.data[..., :-1] * fixed.weight[..., None]
    b = moving.data[..., :-1] * moving.weight[..., None]
    shape = tuple(fft.next_fast_len(2 * n) for n in a.shape[:2])
    spectra = [fft.rfft2(x - x.mean(axis=(0, 1)), s=shape, axes=(0, 1)) for x in (a, b)]
    surface = fft.irfft2((np.conj(spectra[0]) * spectra[1]).sum(axis=-1), s=shape)
    steps = [fft.fftfreq(n, 1 / n) * s for n, s in zip(shape, fixed.grid.spacing_mm, strict=True)]
    near = np.hypot(steps[0][:, None], steps[1][None, :]) <= max_mm
    peak = np.unravel_index(int(np.where(near, surface, -np.inf).argmax()), shape)
    return np.array([steps[0][peak[0]], steps[1][peak[1]]])
