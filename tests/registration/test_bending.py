"""A plane bent onto others must follow smooth deformations, never fold, and count each goal as it weighs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, centred

from histomri.core import Grid, Image
from histomri.registration.bending import TO_PHOTOGRAPH, TO_VOLUME, Goal, Plan, bend_plane, masked_pyramid
from histomri.registration.node_flow import Bending, Pyramid
from histomri.transforms import DisplacementField

GRID = centred(100, 0.11)
TISSUE = Tissue(2)
SOFT = Plan(Bending(alpha=0.1))


def _bend(points: np.ndarray) -> np.ndarray:
    """A smooth field of about 0.3 mm rms."""
    y, x = points[..., 0], points[..., 1]
    return 0.42 * np.stack([np.sin(0.7 * x + 0.4) * np.cos(0.5 * y), np.cos(0.6 * y - 0.3) * np.sin(0.4 * x + 1)], axis=-1)


def _bent_tissue(share: float = 1.0, contrast: float = 0.5, grid: Grid = GRID) -> tuple[Image, Image]:
    """The tissue seen through a share of the bend: fixed(p) = tissue(p + share u(p))."""
    points = grid.points()
    there = points + share * _bend(points)
    inside = TISSUE.inside(there)
    return Image(grid, np.where(inside, 1.5 + contrast * TISSUE.texture(there), 0).astype(np.float32)), Image(grid, inside)


@pytest.fixture(scope="module")
def fixed() -> Pyramid:
    return masked_pyramid(*_bent_tissue())


@pytest.fixture(scope="module")
def moving() -> Pyramid:
    return masked_pyramid(*TISSUE.image(centred(116, 0.11)))


def _error(found: DisplacementField, grid: Grid = GRID, share: float = 1.0) -> np.ndarray:
    """Distances from the true displacement inside the tissue."""
    inner = grid.points()[ndimage.binary_erosion(_bent_tissue(grid=grid)[1].data, iterations=4)]
    return np.linalg.norm(found.at(inner) - share * _bend(inner), axis=-1)


@pytest.mark.parametrize("plan", [SOFT, TO_VOLUME], ids=["soft", "volume"])
def test_a_smooth_field_is_found(plan: Plan, fixed: Pyramid, moving: Pyramid) -> None:
    found = bend_plane([Goal(fixed)], moving, np.eye(3), GRID, plan)
    inner = GRID.points()[_bent_tissue()[1].data]
    assert np.sqrt((_bend(inner) ** 2).sum(axis=-1).mean()) > 0.25, "there must be something to find"
    assert np.median(_error(found)) < 0.04
    assert np.percentile(_error(found), 95) < 0.12
    assert found.jacobian_determinant().min() > 0


def test_the_stiff_plan_finds_a_smooth_field_at_its_own_resolution(moving: Pyramid) -> None:
    fine = centred(220, 0.05)
    tissue = masked_pyramid(*TISSUE.image(centred(255, 0.05)))
    found = bend_plane([Goal(masked_pyramid(*_bent_tissue(grid=fine)))], tissue, np.eye(3), fine, TO_PHOTOGRAPH)
    assert np.median(_error(found, fine)) < 0.05
    assert found.jacobian_determinant().min() > 0


def test_an_inverted_stain_is_followed_too(moving: Pyramid) -> None:
    found = bend_plane([Goal(masked_pyramid(*_bent_tissue(contrast=-0.5)))], moving, np.eye(3), GRID, SOFT)
    assert np.median(_error(found)) < 0.04


def test_the_affine_comes_after_the_field(fixed: Pyramid) -> None:
    """moving(matrix(p + u)): with a turned and shrunk moving image, the field is the same."""
    matrix = np.array([[0.8, 0.25, 0.6], [-0.3, 0.85, -0.2], [0, 0, 1]])
    image = TISSUE.image(Grid((130, 130), np.full(2, 0.09), np.array([-5.2, -6.0])), np.linalg.inv(matrix))
    found = bend_plane([Goal(fixed)], masked_pyramid(*image), matrix, GRID, SOFT)
    assert np.median(_error(found)) < 0.04


def test_goals_that_disagree_are_met_as_they_weigh(fixed: Pyramid, moving: Pyramid) -> None:
    plain = masked_pyramid(*_bent_tissue(0.0))
    gap = []
    for weight in (0.1, 1.0, 10.0):
        field = bend_plane([Goal(fixed, weight), Goal(plain)], moving, np.eye(3), GRID, SOFT)
        inner = GRID.points()[_bent_tissue()[1].data]
        true = _bend(inner)
        gap.append(float((field.at(inner) * true).sum() / (true**2).sum()))
    assert gap[0] < 0.3
    assert gap[0] < gap[1] < gap[2]
    assert gap[2] > 0.7


def test_twice_the_same_goal_is_one(fixed: Pyramid, moving: Pyramid) -> None:
    one = bend_plane([Goal(fixed)], moving, np.eye(3), GRID, SOFT).values
    two = bend_plane([Goal(fixed, 0.5), Goal(fixed, 0.5)], moving, np.eye(3), GRID, SOFT).values
    np.testing.assert_allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("case", ["noise", "checkers", "turned", "loose"])
def test_it_never_folds_whatever_it_is_given(case: str, mended: bool, fixed: Pyramid) -> None:
    image, mask = TISSUE.image(centred(116, 0.11))
    plan = SOFT
    if case == "noise":
        image = image.with_data(np.random.default_rng(1).normal(size=image.grid.shape).astype(np.float32) + 3)
    elif case == "checkers":
        image = image.with_data((np.indices(image.grid.shape).sum(axis=0) % 2 * 20).astype(np.float32))
    elif case == "turned":
        image, mask = image.with_data(image.data[::-1].copy()), mask.with_data(mask.data[::-1].copy())
    else:
        plan = Plan(Bending(alpha=1e-4, window=0.0, ridge=1e-3), stride=2)
    plan = replace(plan, bending=replace(plan.bending, mended=mended))
    field = bend_plane([Goal(fixed)], masked_pyramid(image, mask), np.eye(3), GRID, plan)
    assert np.isfinite(field.values).all()
    assert field.jacobian_determinant().min() > 0


def test_an_image_is_not_bent_onto_itself(fixed: Pyramid) -> None:
    field = bend_plane([Goal(fixed)], fixed, np.eye(3), GRID, SOFT)
    assert np.abs(field.values).max() < 0.01 * 0.11


def test_without_tissue_nothing_moves(moving: Pyramid) -> None:
    blank = masked_pyramid(Image(GRID, np.zeros(GRID.shape, np.float32)), Image(GRID, np.zeros(GRID.shape, bool)))
    assert not bend_plane([Goal(blank)], blank, np.eye(3), GRID, SOFT).values.any()


def test_what_is_not_tissue_pulls_at_nothing() -> None:
    """Handwriting beside the tissue is erased before anything is compared."""
    image, mask = _bent_tissue(0.0)
    scribbled = image.data.copy()
    scribbled[~mask.data] = np.random.default_rng(0).uniform(0, 3, int((~mask.data).sum()))
    clean, dirty = masked_pyramid(image, mask), masked_pyramid(image.with_data(scribbled), mask)
    for a, b in zip(clean.planes, dirty.planes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_that_no_stride_divides(moving: Pyramid) -> None:
    odd = GRID.crop((0, 0), (97, 91))
    found = bend_plane([Goal(masked_pyramid(*_bent_tissue(grid=odd)))], moving, np.eye(3), odd, SOFT)
    assert np.median(_error(found, odd)) < 0.04


def test_more_threads_change_no_bit(fixed: Pyramid, moving: Pyramid, two_threads: None) -> None:
    found = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        found.append(bend_plane([Goal(fixed)], moving, np.eye(3), GRID, SOFT).values)
    np.testing.assert_array_equal(*found)
