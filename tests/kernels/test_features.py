"""Channels must look alike whatever made the two images, and must not see what lies outside the tissue."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels import features

RANDOM = np.random.default_rng(9)


def _tissue(ndim: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (60, 50) if ndim == 2 else (20, 24, 22)
    image = sum(s * ndimage.gaussian_filter(RANDOM.normal(size=shape), s) for s in (1.5, 3, 5))
    nodes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return (1 + image).astype(np.float32), (nodes**2).sum(axis=0) < 0.8


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("gain", "offset"), [(-1.0, 3.0), (40.0, -7.0), (-0.3, 0.0)])
def test_mind_does_not_see_contrast_nor_its_inversion(ndim: int, gain: float, offset: float) -> None:
    image, mask = _tissue(ndim)
    plain, changed = features.mind(image, mask), features.mind(image * np.float32(gain) + np.float32(offset), mask)
    assert plain[:, mask].std() > 0.1
    np.testing.assert_allclose(changed, plain, atol=5e-3)


def test_mind_tells_structure_apart() -> None:
    (one, mask), (other, _) = _tissue(2), _tissue(2)
    a, b = (features.mind(i, mask)[:, mask].ravel() for i in (one, other))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.3


@pytest.mark.parametrize("gain", [-2.0, 50.0])
def test_edges_do_not_see_contrast_nor_its_inversion(gain: float) -> None:
    image, mask = _tissue(2)
    plain, changed = (features.edge_strength(i, mask, 1.0) for i in (image, image * np.float32(gain)))
    assert plain[mask].std() > 0.1
    np.testing.assert_allclose(changed, plain, atol=1e-3)


def test_local_norm_takes_slow_shading_out() -> None:
    image, mask = _tissue(2)
    shaded = (image * np.linspace(0.5, 1.5, 50) + np.linspace(0, 4, 60)[:, None]).astype(np.float32)
    plain, other = features.local_norm(image, mask, 3.0), features.local_norm(shaded, mask, 3.0)
    before = np.corrcoef(image[mask], shaded[mask])[0, 1]
    after = np.corrcoef(plain[mask], other[mask])[0, 1]
    assert after > 0.9 > before


@pytest.mark.parametrize("name", ["mind", "edges", "local_norm", "masked_mean"])
def test_what_lies_outside_of_the_mask_has_no_say(name: str) -> None:
    function = {
        "mind": features.mind,
        "edges": lambda i, m: features.edge_strength(i, m, 1.0),
        "local_norm": lambda i, m: features.local_norm(i, m, 3.0),
        "masked_mean": lambda i, m: features.masked_mean(i, m, 2.0),
    }[name]
    image, mask = _tissue(2)
    dirty = np.where(mask, image, np.float32(1e4))
    np.testing.assert_array_equal(function(image, mask), function(dirty, mask))
    if name != "masked_mean":
        assert not function(image, mask)[..., ~mask].any()


def test_an_empty_mask_gives_zeros_and_no_warning() -> None:
    image, mask = _tissue(2)
    empty = np.zeros_like(mask)
    with np.errstate(all="raise"):
        for out in (
            features.mind(image, empty),
            features.edge_strength(image, empty, 1.0),
            features.local_norm(image, empty, 3.0),
        ):
            assert not out.any()


def test_a_flat_image_has_no_structure() -> None:
    _, mask = _tissue(2)
    flat = np.full(mask.shape, 0.7, np.float32)
    assert np.ptp(features.mind(flat, mask)[:, mask]) < 1e-3


@pytest.mark.parametrize("shape", [(21, 30), (9, 14, 11)])
def test_smooth_is_a_gaussian(shape: tuple[int, ...]) -> None:
    image = RANDOM.normal(size=shape).astype(np.float32)
    expected = ndimage.gaussian_filter(image.astype(float), 1.7, mode="nearest", radius=int(np.ceil(3 * 1.7)))
    np.testing.assert_allclose(features.smooth(image, 1.7), expected, atol=0.02)
    np.testing.assert_array_equal(features.smooth(image, 0.0), image)


def test_shifted_looks_ahead_with_replicated_edges() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(features.shifted(image, (1, -2)), [[4, 4, 4, 5], [8, 8, 8, 9], [8, 8, 8, 9]])


def test_neighbourhoods_have_8_and_6_directions() -> None:
    assert len(features.neighbourhood(2)) == 8
    assert sorted(features.neighbourhood(3)) == sorted(
        tuple(o) for o in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    )
