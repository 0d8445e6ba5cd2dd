"""Focus and stain quality: a blurred section is told from a sharp one whatever its stain; uneven focus is told too."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from histomri.kernels.focus import measure_focus, measure_stain, white_balance


def tissue(seed: int, contrast: float = 1.0, sigma: float = 0.0, noise: float = 0.004) -> list[Any]:
    """Tiles of optical density with cells of all sizes, blurred as a lens would, then with the camera's noise."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(12):
        cells = cv2.GaussianBlur(rng.normal(0, 1, (128, 128)), (0, 0), 1.0) + cv2.GaussianBlur(
            rng.normal(0, 3, (128, 128)), (0, 0), 3
        )
        density = 0.4 + 0.15 * contrast * cells
        density = cv2.GaussianBlur(density, (0, 0), sigma) if sigma else density
        tiles.append((density + rng.normal(0, noise, density.shape)).astype(np.float32))
    return tiles


def glass(noise: float = 0.004) -> list[Any]:
    return [np.random.default_rng(9 + k).normal(0, noise, (128, 128)).astype(np.float32) for k in range(6)]


@pytest.mark.parametrize("contrast", [0.5, 1.0, 2.0])
def test_blur_lowers_sharpness_and_stain_does_not(contrast: float) -> None:
    sharp = measure_focus(tissue(0), glass()).sharpness
    again = measure_focus(tissue(1, contrast), glass()).sharpness
    blurred = [measure_focus(tissue(2, contrast, sigma), glass()).sharpness for sigma in (1.0, 2.0, 3.0)]
    assert sharp and again and all(blurred)
    assert abs(np.log(again / sharp)) < 0.1
    assert sharp * 0.75 > blurred[0] > blurred[1] > blurred[2]  # type: ignore[operator]


def test_noise_is_no_sharpness() -> None:
    noisy = measure_focus(tissue(3, 1.0, 3.0, noise=0.02), glass(0.02)).sharpness
    clean = measure_focus(tissue(3, 1.0, 3.0, noise=0.0), glass(0.0)).sharpness
    sharp = measure_focus(tissue(3), glass()).sharpness
    assert noisy is not None and clean is not None and sharp is not None
    assert noisy < 0.5 * sharp and clean < 0.5 * sharp


def test_a_third_out_of_focus_is_told() -> None:
    found = measure_focus(tissue(4)[:8] + tissue(5, sigma=4.0)[:4], glass())
    assert found.soft_share == pytest.approx(1 / 3, abs=0.01)
    assert measure_focus(tissue(4), glass()).soft_share == 0


def test_flat_tissue_cannot_tell() -> None:
    assert measure_focus([np.full((128, 128), 0.3, np.float32)], glass()).sharpness is None
    assert measure_focus([], []).sharpness is None


def test_stain_is_measured_as_defined() -> None:
    density = np.linspace(0.2, 0.6, 101)[:, None] * np.array([0.5, 1.0, 1.5])
    found = measure_stain(density)
    assert found.density == pytest.approx(0.4)
    assert found.saturation == pytest.approx(np.std([0.5, 1.0, 1.5]))
    assert found.dynamic_range == pytest.approx(0.36)
    assert white_balance((240.0, 250.0, 230.0)) == pytest.approx((1.0, 250 / 240, 230 / 240))
