"""The deformation must find smooth fields, never fold, and leave alone what it cannot better."""

from __future__ import annotations

import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, centred

from histomri.core import Grid, Image
from histomri.registration.channels import make_channels
from histomri.registration.deformable import MIN_JACOBIAN, Deformation, compose, fit_deformable, jacobian, unfold
from histomri.registration.linear import Channels

GRID = centred(100, 0.11)
TISSUE = Tissue(2)


def _bend(points: np.ndarray) -> np.ndarray:
    """A smooth field of about 0.3 mm rms."""
    y, x = points[..., 0], points[..., 1]
    return 0.42 * np.stack([np.sin(0.7 * x + 0.4) * np.cos(0.5 * y), np.cos(0.6 * y - 0.3) * np.sin(0.4 * x + 1)], axis=-1)


def _bent_tissue() -> tuple[Image, Image]:
    """The tissue seen through the bend: fixed(p) = tissue(p + u(p))."""
    points = GRID.points()
    there = points + _bend(points)
    inside = TISSUE.inside(there)
    return Image(GRID, np.where(inside, 1.5 + 0.5 * TISSUE.texture(there), 0).astype(np.float32)), Image(GRID, inside)


@pytest.fixture(scope="module")
def fixed() -> Channels:
    return make_channels(*_bent_tissue(), "structure")


@pytest.fixture(scope="module")
def moving() -> Channels:
    return make_channels(*TISSUE.image(centred(116, 0.11)), "structure")


def test_a_smooth_field_is_found(fixed: Channels, moving: Channels) -> None:
    result = fit_deformable(fixed, moving, np.eye(3), Deformation())
    inner = ndimage.binary_erosion(_bent_tissue()[1].data, iterations=4)
    true = _bend(GRID.points())[inner]
    error = np.linalg.norm(result.field.values[inner] - true, axis=-1)
    assert np.sqrt((true**2).sum(axis=-1).mean()) > 0.25, "there must be something to find"
    assert np.median(error) < 0.05
    assert np.percentile(error, 95) < 0.15
    assert result.after < 0.5 * result.before
    assert result.field.jacobian_determinant().min() > MIN_JACOBIAN


def test_the_affine_comes_after_the_field(fixed: Channels) -> None:
    """moving(matrix(p + u)): with a turned and shrunk moving image, the field is the same."""
    matrix = np.array([[0.8, 0.25, 0.6], [-0.3, 0.85, -0.2], [0, 0, 1]])
    image = TISSUE.image(Grid((130, 130), np.full(2, 0.09), np.array([-5.2, -6.0])), np.linalg.inv(matrix))
    texture = np.stack([image[0].data, image[1].data.astype(np.float32)], axis=-1)
    plain = _bent_tissue()
    goal = np.stack([plain[0].data, plain[1].data.astype(np.float32)], axis=-1)
    moving = Channels(image[0].grid, texture, np.ones(image[0].grid.shape, np.float32))
    result = fit_deformable(Channels(GRID, goal, fixed.weight), moving, matrix, Deformation())
    inner = ndimage.binary_erosion(plain[1].data, iterations=4)
    assert np.median(np.linalg.norm(result.field.values[inner] - _bend(GRID.points())[inner], axis=-1)) < 0.05


@pytest.mark.parametrize("case", ["noise", "checkers", "swapped", "loose"])
def test_it_never_folds_whatever_it_is_given(case: str, fixed: Channels, moving: Channels) -> None:
    random = np.random.default_rng(1)
    settings = Deformation(iterations=8)
    if case == "noise":
        moving = Channels(moving.grid, random.normal(size=moving.data.shape).astype(np.float32) * 5, moving.weight)
    elif case == "checkers":
        squares = np.indices(moving.grid.shape).sum(axis=0) % 2 * 20.0
        moving = Channels(
            moving.grid, np.repeat(squares[..., None], moving.data.shape[-1], axis=-1).astype(np.float32), moving.weight
        )
    elif case == "swapped":
        moving = Channels(moving.grid, np.ascontiguousarray(moving.data[::-1, ::-1]), moving.weight)
    else:
        settings = Deformation(iterations=15, window_px=0.7, stiffness_px=0.0, ridge=1e-3)
    result = fit_deformable(fixed, moving, np.eye(3), settings)
    assert np.isfinite(result.field.values).all()
    assert result.field.jacobian_determinant().min() > 0
    assert result.after <= result.before


def test_what_cannot_be_bettered_is_left_alone(fixed: Channels) -> None:
    same = fit_deformable(fixed, fixed, np.eye(3), Deformation(iterations=3))
    assert not same.field.values.any()
    assert same.status == "failed: no improvement"
    blank = Channels(fixed.grid, np.zeros_like(fixed.data), fixed.weight)
    nothing = fit_deformable(fixed, blank, np.eye(3), Deformation(iterations=3))
    assert not nothing.field.values.any()
    assert nothing.after == nothing.before


def test_a_fixed_image_without_weight_moves_nothing(fixed: Channels, moving: Channels) -> None:
    empty = Channels(fixed.grid, fixed.data, np.zeros_like(fixed.weight))
    assert not fit_deformable(empty, moving, np.eye(3), Deformation(iterations=2)).field.values.any()


def test_a_good_start_is_kept(fixed: Channels, moving: Channels) -> None:
    start = _bend(GRID.points()).astype(np.float32)
    result = fit_deformable(fixed, moving, np.eye(3), Deformation(factors=(1,), iterations=2), start)
    inner = ndimage.binary_erosion(_bent_tissue()[1].data, iterations=4)
    assert np.median(np.linalg.norm(result.field.values[inner] - start[inner], axis=-1)) < 0.05


def test_compose_refuses_updates_that_fold() -> None:
    field = np.zeros((20, 20, 2), np.float32)
    wild = np.zeros((20, 20, 2), np.float32)
    wild[10:, :, 0] = -15.0
    assert jacobian(compose(field, wild)).min() > 0
    np.testing.assert_array_equal(compose(field, field), field)


def test_compose_applies_the_update_first() -> None:
    """``u(p + du) + du`` of two shifts adds; of a shift and a ramp it takes the ramp's value where the shift leads."""
    rows = np.arange(30, dtype=np.float32)
    ramp = np.zeros((30, 30, 2), np.float32)
    ramp[..., 0] = 0.1 * rows[:, None]
    shift = np.zeros((30, 30, 2), np.float32)
    shift[..., 0] = 2.0
    np.testing.assert_allclose(compose(ramp, shift)[:25, 0, 0], 0.1 * (rows[:25] + 2) + 2, rtol=1e-5)


def test_unfold_smooths_no_more_than_it_must() -> None:
    random = np.random.default_rng(0)
    gentle = ndimage.gaussian_filter(random.normal(size=(40, 40, 2)), (6, 6, 0)).astype(np.float32)
    np.testing.assert_array_equal(unfold(gentle), gentle)
    wild = (random.normal(size=(40, 40, 2)) * 4).astype(np.float32)
    assert jacobian(wild).min() < 0
    assert jacobian(unfold(wild)).min() > MIN_JACOBIAN


def test_sizes_that_no_factor_divides(fixed: Channels, moving: Channels) -> None:
    odd = Channels(
        fixed.grid.crop((0, 0), (97, 91)),
        np.ascontiguousarray(fixed.data[:97, :91]),
        np.ascontiguousarray(fixed.weight[:97, :91]),
    )
    result = fit_deformable(odd, moving, np.eye(3), Deformation())
    inner = ndimage.binary_erosion(_bent_tissue()[1].data[:97, :91], iterations=4)
    error = np.linalg.norm(result.field.values[inner] - _bend(odd.grid.points())[inner], axis=-1)
    assert np.median(error) < 0.05


def test_more_threads_change_no_bit(fixed: Channels, moving: Channels, two_threads: None) -> None:
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(fit_deformable(fixed, moving, np.eye(3), Deformation(iterations=3)).field.values)
    np.testing.assert_array_equal(*found)
