"""Feature channels in which two images of one tissue look alike, whatever made them.

All functions take float32 arrays (y, x) or (z, y, x) and a boolean mask of the same shape, and return channels first: (c, ...);
:func:`mind` also arrays of CuPy.
"""

from __future__ import annotations

from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histomri.backend import array_module
from histomri.kernels.gaussian import gaussian

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

EPSILON = 1e-6


def smooth(image: Array | Mask, sigma_px: float) -> Array:
    """Gaussian of ``sigma_px`` pixels, truncated at 3 sigma, edges replicated; unchanged for sigma 0."""
    xp = array_module(image)
    data = xp.asarray(image, np.float32)
    if sigma_px <= 0:
        return data  # type: ignore[no-any-return]
    if xp is np and data.ndim == 2:
        width = 2 * int(np.ceil(3 * sigma_px)) + 1
        return np.asarray(cv2.GaussianBlur(data, (width, width), sigma_px, borderType=cv2.BORDER_REPLICATE), np.float32)
    return gaussian(data, sigma_px, data.ndim)


def masked_mean(image: Array, mask: Mask, sigma_px: float) -> Array:
    """Normalised convolution ``G*(I m) / G*m``: the local mean of what lies inside the mask; 0 far from it."""
    xp, weight = array_module(image), smooth(mask, sigma_px)
    return xp.asarray(smooth(xp.where(mask, image, np.float32(0)), sigma_px) / xp.maximum(weight, np.float32(1e-3)), np.float32)  # type: ignore[no-any-return]


def local_norm(image: Array, mask: Mask, sigma_px: float) -> Array:
    """``(I - mean) / sd`` with local moments inside the mask, clipped at 3, and 0 outside the mask.

    The squared difference of two such images is 2 (1 - LNCC). ``sd`` is bounded below by a quarter of its median in the mask, so
    that flat regions do not turn noise into structure.
    """
    mean = masked_mean(image, mask, sigma_px)
    variance = masked_mean((image - mean) ** 2, mask, sigma_px)
    sd = np.sqrt(np.maximum(variance, 0))
    floor = 0.25 * float(np.median(sd[mask])) if mask.any() else 1.0
    out = np.clip((image - mean) / np.maximum(sd, floor + EPSILON), -3, 3)
    return np.where(mask, out, 0).astype(np.float32)


def neighbourhood(ndim: int) -> list[tuple[int, ...]]:
    """Offsets of MIND: the 8 neighbours in 2D, the 6 face neighbours in 3D."""
    offsets = [o for o in product((-1, 0, 1), repeat=ndim) if any(o)]
    return offsets if ndim == 2 else [o for o in offsets if sum(map(abs, o)) == 1]


def mind(image: Array, mask: Mask, sigma_px: float = 1.0, reach: int = 2) -> Array:
    """Modality independent neighbourhood descriptor (Heinrich et al. 2012).

    ``S_r = exp(-D_r / V)`` where ``D_r = G_sigma * (I(p) - I(p + r))^2`` and V is the mean of D_r over the neighbourhood, bounded
    to 0.05 to 50 times its median in the mask; divided by the largest S_r, minus its neutral value, and 0 outside the mask.
    """
    xp, shifts = array_module(image), [tuple(reach * s for s in o) for o in neighbourhood(image.ndim)]
    filled = xp.where(mask, image, masked_mean(image, mask, 4 * sigma_px)).astype(np.float32)
    distance = xp.stack([smooth((filled - shifted(filled, s)) ** 2, sigma_px) for s in shifts])
    variance = distance.mean(axis=0)
    middle = float(xp.median(variance[mask])) if mask.any() else 1.0
    variance = xp.clip(variance, 0.05 * middle + EPSILON, 50 * middle + 2 * EPSILON)
    out = xp.exp(-distance / variance)
    out /= xp.maximum(out.max(axis=0), EPSILON)
    return xp.where(mask, out - np.float32(0.5), 0).astype(np.float32)  # type: ignore[no-any-return]


def shifted(image: Array, shift: tuple[int, ...]) -> Array:
    """``I(p + shift)`` with replicated edges, integer shifts."""
    pad = [(max(0, -s), max(0, s)) for s in shift]
    padded: Array = array_module(image).pad(image, pad, mode="edge")
    return padded[tuple(slice(max(0, s), max(0, s) + n) for s, n in zip(shift, image.shape, strict=True))]


def edge_strength(image: Array, mask: Mask, sigma_px: float) -> Array:
    """Gradient magnitude at scale sigma over its median in the mask, saturated (``g / (1 + g)``), 0 outside: contrast-blind."""
    filled = np.where(mask, image, masked_mean(image, mask, 2 * sigma_px)).astype(np.float32)
    gradient = ndimage.gaussian_gradient_magnitude(filled, sigma_px, mode="nearest")
    middle = float(np.median(gradient[mask])) if mask.any() else 1.0
    ratio = gradient / (middle + EPSILON)
    return np.where(mask, ratio / (1 + ratio), 0).astype(np.float32)
