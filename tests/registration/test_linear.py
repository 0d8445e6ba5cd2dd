"""Gauss-Newton must find known transforms of every model, and must not shrink what matches only in part."""

from __future__ import annotations

import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import expm

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, apart, centred, moved

from histomri.core import Grid, RegistrationError
from histomri.registration.channels import match_contrast
from histomri.registration.groups import generators
from histomri.registration.linear import fit_linear
from histomri.registration.samples import Channels, draw_samples

MODELS = ["translation", "rigid", "similarity", "scaling", "affine"]


def _smooth(grid: Grid, to_tissue: np.ndarray) -> Channels:
    """Three smooth channels under an envelope, exact at every point."""
    points = moved(to_tissue, grid.points())
    envelope = np.exp(-0.5 * (np.linalg.norm(points, axis=-1) / 2.5) ** 4)
    random = np.random.default_rng(4)
    waves = [np.cos(points @ random.normal(size=grid.ndim) * 1.2 + random.uniform(0, 6)) for _ in range(3)]
    data = np.stack([envelope * w for w in waves], axis=-1).astype(np.float32)
    return Channels(grid, data, np.ones(grid.shape, np.float32))


def _truth(model: str, ndim: int) -> np.ndarray:
    """A transform of the model, about 10 degrees, 10 % and 0.4 mm from the identity; scales along the fixed axes."""
    shift, turn, size = np.eye(ndim + 1), np.eye(ndim + 1), np.eye(ndim + 1)
    shift[:-1, -1] = np.array([0.4, -0.3, 0.2])[:ndim]
    if model != "translation":
        skew = np.triu(np.array([[0, 0.15, -0.1], [0, 0, 0.12], [0, 0, 0]])[:ndim, :ndim])
        turn[:-1, :-1] = expm(skew - skew.T)
    scales = {"similarity": [1.08] * 3, "scaling": [0.92, 1.1, 1.04], "affine": [0.92, 1.1, 1.04]}.get(model, [1.0] * 3)
    size[:-1, :-1] = np.diag(scales[:ndim])
    if model == "affine":
        size[0, 1] = 0.07
    return shift @ turn @ size


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_known_transforms_are_found(model: str, ndim: int) -> None:
    truth = _truth(model, ndim)
    fixed = _smooth(centred({2: 70, 3: 30}[ndim], {2: 0.12, 3: 0.28}[ndim], ndim), np.eye(ndim + 1))
    spacing = np.array([0.13, 0.11, 0.12])[:ndim] * {2: 1, 3: 2}[ndim]
    shape = {2: (90, 100), 3: (44, 50, 46)}[ndim]
    grid = Grid(shape, spacing, -(np.array(shape) - 1) / 2 * spacing)
    moving = _smooth(grid, np.linalg.inv(truth))
    result = fit_linear(draw_samples(fixed), moving, np.eye(ndim + 1), model)
    assert apart(np.eye(ndim + 1), truth, 2.5) > 0.3
    # a tenth of a pixel; what is left is linear interpolation, which falls with the square of the spacing
    assert apart(result.matrix, truth, 2.5) < {2: 0.012, 3: 0.022}[ndim]
    assert result.status == "converged"


@pytest.mark.parametrize("model", ["rigid", "similarity", "scaling"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_model_stays_what_it_is(model: str, ndim: int) -> None:
    """Whatever the images ask for: here they ask for an affine."""
    fixed, moving = (
        _smooth(centred(28, 0.3, ndim), np.eye(ndim + 1)),
        _smooth(centred(34, 0.3, ndim), np.linalg.inv(_truth("affine", ndim))),
    )
    linear = fit_linear(draw_samples(fixed), moving, np.eye(ndim + 1), model).matrix[:-1, :-1]
    square = linear.T @ linear
    if model == "rigid":
        np.testing.assert_allclose(square, np.eye(ndim), atol=1e-10)
    elif model == "similarity":
        np.testing.assert_allclose(square, np.eye(ndim) * square[0, 0], atol=1e-10)
    else:
        np.testing.assert_allclose(square, np.diag(np.diag(square)), atol=1e-10)
    assert np.linalg.det(linear) > 0
    assert not np.allclose(linear, np.eye(ndim), atol=0.02)


def test_turned_grids_are_no_different() -> None:
    """Directions of the moving grid are part of its geometry."""
    truth, turn = _truth("affine", 3), expm(np.array([[0, 0.5, -0.3], [-0.5, 0, 0.9], [0.3, -0.9, 0]]))
    upright = centred(46, 0.25, 3)
    turned = Grid(upright.shape, upright.spacing_mm, turn @ upright.origin_mm, turn)
    fixed = _smooth(centred(30, 0.28, 3), np.eye(4))
    result = fit_linear(draw_samples(fixed), _smooth(turned, np.linalg.inv(truth)), np.eye(4), "affine")
    assert apart(result.matrix, truth, 2.5) < 0.022


@pytest.mark.parametrize("ndim", [2, 3])
def test_match_contrast_keeps_a_partial_match_from_shrinking(ndim: int) -> None:
    """Little of the texture agrees; the outline is weak. Unscaled texture shrinks: zeros fit better than what is wrong."""
    n = {2: 80, 3: 34}[ndim]
    grid = centred(n, 12.0 / n, ndim)
    random = np.random.default_rng(6)
    _, mask = Tissue(ndim).image(grid)
    noise = ndimage.gaussian_filter(random.normal(size=(2, *grid.shape, 6)), (0, *[1.2] * ndim, 0))
    noise *= 0.35 / noise.std()
    outline = 0.3 * ndimage.gaussian_filter(mask.data.astype(float), 1.0)[..., None]

    def channels(texture: np.ndarray) -> Channels:
        data = np.concatenate([texture * mask.data[..., None], outline], axis=-1).astype(np.float32)
        return Channels(grid, data, ndimage.binary_dilation(mask.data, iterations=3).astype(np.float32))

    fixed, moving = channels(noise[0]), channels(0.15 * noise[0] + 0.99 * noise[1])

    def scale(image: Channels) -> float:
        matrix = fit_linear(draw_samples(fixed), image, np.eye(ndim + 1), "similarity").matrix
        return float(np.linalg.det(matrix[:-1, :-1]) ** (1 / ndim))

    assert scale(moving) > 1.014, "the case must be one that shrinks"
    assert scale(match_contrast(fixed, moving, moving.data)) == pytest.approx(1.0, abs=0.008)


def test_match_contrast_leaves_outline_and_equal_texture_alone() -> None:
    image = _smooth(centred(30, 0.3), np.eye(3))
    np.testing.assert_allclose(match_contrast(image, image, image.data).data, image.data, rtol=1e-6)
    inverted = Channels(image.grid, -image.data, image.weight)
    matched = match_contrast(image, inverted, inverted.data)
    np.testing.assert_array_equal(matched.data[..., -1], inverted.data[..., -1])
    np.testing.assert_allclose(matched.data[..., :-1], 0.2 * inverted.data[..., :-1], rtol=1e-6)


def test_a_prior_holds_what_the_images_do_not_tell() -> None:
    """An image of stripes knows nothing of shifts along them; the prior's word on them is kept, on the other axis it yields."""
    grid = centred(40, 0.2)
    stripes = np.cos(grid.points()[..., :1] * 2).astype(np.float32)
    image = Channels(grid, stripes, (np.abs(grid.points()) < 2.5).all(axis=-1).astype(np.float32))
    goal = np.array([[1, 0, 0.1], [0, 1, 0.5]])

    def prior(matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        off = (matrix[:2] - goal).ravel()
        return 1e-3 * float(off @ off), 1e-3 * off, 1e-3 * np.eye(6)

    matrix = fit_linear(draw_samples(image), image, np.eye(3), "translation", prior=prior).matrix
    assert matrix[1, 2] == pytest.approx(0.5, abs=0.01)
    assert abs(matrix[0, 2]) < 0.01


def test_an_empty_mask_and_an_unknown_model_are_errors_in_words() -> None:
    grid = centred(8, 1.0)
    empty = Channels(grid, np.zeros((8, 8, 1), np.float32), np.zeros((8, 8), np.float32))
    with pytest.raises(RegistrationError, match="mask is empty"):
        draw_samples(empty)
    with pytest.raises(ValueError, match=r"Unknown model 'bent'.*rigid"):
        generators("bent", 2)


def test_a_moving_image_without_structure_moves_nothing() -> None:
    fixed = _smooth(centred(30, 0.3), np.eye(3))
    flat = Channels(fixed.grid, np.zeros_like(fixed.data), fixed.weight)
    matrix = fit_linear(draw_samples(fixed), flat, np.eye(3), "affine").matrix
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)


def test_fewer_samples_are_spread_evenly_and_the_same_each_time() -> None:
    fixed = _smooth(centred(60, 0.1), np.eye(3))
    few, again = draw_samples(fixed, 500), draw_samples(fixed, 500)
    np.testing.assert_array_equal(few.points, again.points)
    assert len(few.points) == 500
    quadrant = (few.points > 0) @ [1, 2]
    assert np.bincount(quadrant, minlength=4).min() > 100
    assert len(np.unique(few.points[:, 1])) > 50, "stripes"


def test_more_threads_change_no_bit(two_threads: None) -> None:
    fixed, moving = _smooth(centred(70, 0.12), np.eye(3)), _smooth(centred(80, 0.12), np.linalg.inv(_truth("affine", 2)))
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(fit_linear(draw_samples(fixed), moving, np.eye(3), "affine").matrix)
    np.testing.assert_array_equal(*found)
