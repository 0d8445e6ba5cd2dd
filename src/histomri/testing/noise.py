"""Gradient noise from a hash of the lattice: it can be evaluated anywhere, at any pixel size, and needs no table.

numba's cache looks only at the file of the function that it compiled last: after an edit here, remove ``__pycache__``, or the
kernels of the other modules keep the old noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# odd constants with well-spread bits; the steps along the lattice axes are sums of them, so that a corner costs one addition
_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xC2B2AE3D27D4EB4F)
_C = np.uint64(0x165667B19E3779F9)
_D = np.uint64(0xD6E8FEB86659FD93)
_M = np.uint64(0xFF51AFD7ED558CCD)
_STEP, _HALF, _LAST = np.uint64(16), np.uint64(32), np.uint64(48)
_FIELD = np.uint64(0xFFFF)
_UNIT = 1.0 / 65535.0
MEAN_SPECKLE = 0.2
_GAIN = 2.4 / 65535.0


@njit(cache=True, inline="always")
def mix_bits(h: Any) -> Any:
    """Spread every bit of a 64-bit number over the upper bits."""
    h ^= h >> _HALF
    h *= _M
    return h ^ (h >> _HALF)


@njit(cache=True, inline="always")
def hash3(z: int, y: int, x: int, seed: int) -> Any:
    """64 well-mixed bits of an integer lattice point."""
    return mix_bits(np.uint64(z) * _A + np.uint64(y) * _B + np.uint64(x) * _C + np.uint64(seed) * _D)


@njit(cache=True, inline="always")
def bits(h: Any, place: int) -> float:
    """The ``place``-th (0 to 3) 16 bits of a hash as a number from 0 to 1."""
    return float((h >> (np.uint64(place) * _STEP)) & _FIELD) * _UNIT


@njit(cache=True, inline="always")
def _corner(h: Any, dz: float, dy: float, dx: float) -> float:
    h = mix_bits(h)
    gz, gy, gx = float(np.int16(h >> _STEP)), float(np.int16(h >> _HALF)), float(np.int16(h >> _LAST))
    return gz * dz + gy * dy + gx * dx


@njit(cache=True, inline="always")
def _fade(t: float) -> float:
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)


@njit(cache=True, fastmath=True)
def gradient_noise(z: float, y: float, x: float, seed: int) -> float:
    """Perlin's noise of wavelength 1 with random gradients; mean 0, about -1 to 1, rms about 0.3, twice differentiable."""
    iz, iy, ix = math.floor(z), math.floor(y), math.floor(x)
    fz, fy, fx = z - iz, y - iy, x - ix
    u, v, w = _fade(fz), _fade(fy), _fade(fx)
    h = np.uint64(int(iz)) * _A + np.uint64(int(iy)) * _B + np.uint64(int(ix)) * _C + np.uint64(seed) * _D
    a, b = _corner(h, fz, fy, fx), _corner(h + _C, fz, fy, fx - 1)
    c, d = _corner(h + _B, fz, fy - 1, fx), _corner(h + _B + _C, fz, fy - 1, fx - 1)
    near = (a + w * (b - a)) * (1 - v) + (c + w * (d - c)) * v
    h += _A
    a, b = _corner(h, fz - 1, fy, fx), _corner(h + _C, fz - 1, fy, fx - 1)
    c, d = _corner(h + _B, fz - 1, fy - 1, fx), _corner(h + _B + _C, fz - 1, fy - 1, fx - 1)
    far = (a + w * (b - a)) * (1 - v) + (c + w * (d - c)) * v
    return (near + u * (far - near)) * _GAIN


@njit(cache=True, fastmath=True)
def octaves(z: float, y: float, x: float, longest_mm: float, shortest_mm: float, finest_mm: float, seed: int) -> float:
    """Sum of noise from ``longest_mm`` down by octaves, ``sum 0.75**i noise(p / wavelength_i)``.

    Octaves end at ``shortest_mm`` and fade out where the wavelength nears two samples of ``finest_mm``, so no aliases arise.
    """
    total, wavelength, weight = 0.0, longest_mm, 1.0
    while wavelength >= shortest_mm and wavelength > 2 * finest_mm:
        visible = min(1.0, wavelength / (2 * finest_mm) - 1.0)
        f = 1.0 / wavelength
        # a turned lattice for every octave hides its axes
        total += weight * visible * gradient_noise(z * f + 0.3 * y * f, y * f - 0.3 * z * f, x * f + 0.2 * y * f, seed)
        wavelength, weight, seed = 0.5 * wavelength, 0.75 * weight, seed + 17
    return total


@njit(cache=True, fastmath=True)
def speckle(z: float, y: float, x: float, cell_mm: float, finest_mm: float, seed: int) -> float:
    """Coverage, 0 to 1, by round cells, one in each cube of ``cell_mm``; fading into their mean where they cannot be resolved."""
    sharp = min(1.0, 2.0 - 4.0 * finest_mm / cell_mm)
    if sharp <= 0.0:
        return MEAN_SPECKLE
    qy, qx = math.floor(y / cell_mm), math.floor(x / cell_mm)
    # each column of cubes starts at a height of its own, so that every plane cuts as many cells
    height = z / cell_mm + bits(hash3(0, int(qy), int(qx), seed + 1), 0)
    qz = math.floor(height)
    h = hash3(int(qz), int(qy), int(qx), seed)
    radius = 0.22 + 0.16 * bits(h, 3)
    dz = height - qz - 0.5
    dy = y / cell_mm - qy - radius - (1 - 2 * radius) * bits(h, 0)
    dx = x / cell_mm - qx - radius - (1 - 2 * radius) * bits(h, 1)
    distance = math.sqrt(0.4 * dz * dz + dy * dy + dx * dx)
    covered = min(1.0, max(0.0, (radius - distance) * cell_mm / finest_mm + 0.5))
    return sharp * covered + (1.0 - sharp) * MEAN_SPECKLE
