"""Levels of the planar registration: brightness made comparable, and steps that would fold in one place only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from histomri.core import Grid
from histomri.kernels.flow_nodes import Looks, least_jacobian
from histomri.registration import node_flow
from histomri.registration.node_flow import MIN_JACOBIAN, Bending, Extras, Level, Pyramid, Still, make_both_ways
from histomri.registration.planar import _promising

RANDOM = np.random.default_rng(5)
SHAPE, PAD = (64, 72), 6
GRID = Grid(SHAPE, (1.0, 1.0), (0.0, 0.0), np.eye(2))
STILL = np.zeros((16, 18, 2), np.float32)


def _looks(colour: np.ndarray, weight: np.ndarray | None = None) -> Looks:
    weight = np.ones(colour.shape, np.float32) if weight is None else weight
    none = np.zeros(colour.shape, np.float32)
    return Looks(np.zeros((*colour.shape, 8), np.float32), none, weight, None, colour.astype(np.float32))


def _level(of_fixed, noise: float = 0.05, share: float = 1.0) -> Level:  # type: ignore[no-untyped-def]
    """A moving image of any brightness, and a fixed one that is a function of it, with noise; ``share`` of it has weight."""
    moving = ndimage.gaussian_filter(RANDOM.normal(size=(SHAPE[0] + 2 * PAD, SHAPE[1] + 2 * PAD)), 3)
    moving /= moving.std()
    fixed = of_fixed(moving[PAD:-PAD, PAD:-PAD]) + noise * RANDOM.normal(size=SHAPE)
    weight = (np.arange(SHAPE[0])[:, None] < share * SHAPE[0]) * np.ones(SHAPE, np.float32)
    return Level(GRID, _looks(fixed, weight.astype(np.float32)), _looks(moving), PAD, 4, 1.0, 0.7)


def test_brightness_that_is_no_monotone_function_becomes_comparable() -> None:
    level = _level(lambda m: m**2)
    seen = level.seen(STILL, 0.0)
    assert seen.fixed.colour is not None and seen.moving.colour is not None
    fixed, moving = seen.fixed.colour, seen.moving.colour[PAD:-PAD, PAD:-PAD]
    assert np.corrcoef(fixed.ravel(), moving.ravel())[0, 1] > 0.97
    raw = np.corrcoef(fixed.ravel(), level.moving.colour[PAD:-PAD, PAD:-PAD].ravel())[0, 1]  # type: ignore[index]
    assert abs(raw) < 0.5, "as it is it must not be comparable"


def test_brightness_that_tells_nothing_draws_nothing() -> None:
    related, other = (_level(function, noise).seen(STILL, 0.0) for function, noise in ((np.abs, 0.3), (np.zeros_like, 1.0)))
    slopes = [float(np.abs(np.diff(seen.moving.colour, axis=0)).mean()) for seen in (related, other)]
    assert slopes[1] < 0.2 * slopes[0]


def test_colours_count_in_units_of_what_they_leave_open() -> None:
    seen = _level(np.sin, noise=0.5).seen(STILL, 0.0)
    residual = seen.fixed.colour - seen.moving.colour[PAD:-PAD, PAD:-PAD]  # type: ignore[operator, index]
    assert residual.std() == pytest.approx(0.7, rel=0.1)


def test_images_that_agree_by_their_masks_alone_are_not_held_where_they_lie() -> None:
    """Where brightness leaves nothing open, the unit has a floor: else what lies apart would be an outlier and lose its say."""
    seen = _level(lambda m: (m > 0) * 1.0, noise=0.0).seen(STILL, 0.0)
    span = np.ptp(seen.fixed.colour)
    assert span <= 0.7 / np.sqrt(node_flow.LEAST_UNEXPLAINED) / 0.5 * 1.05


def test_too_few_pixels_have_no_colour() -> None:
    seen = _level(np.sin, share=0.02).seen(STILL, 0.0)
    assert seen.fixed.colour is None and seen.moving.colour is None


def test_a_level_has_only_what_counts() -> None:
    mask = np.zeros((90, 90), bool)
    mask[20:70, 15:75] = True
    image = np.where(mask, RANDOM.random((90, 90)) + 1, 0).astype(np.float32)
    grid = Grid((90, 90), (1.0, 1.0), (0.0, 0.0), np.eye(2))
    pyramid = Pyramid((grid,), (np.stack([image, mask], axis=-1).astype(np.float32),))
    bare = Still.of(pyramid, grid, Extras(tone=False)).looks
    assert bare.outline is None and bare.colour is None and not bare.tone.any()
    for level in make_both_ways((pyramid, pyramid), np.eye(3), grid, 4, 1.0, Extras(2.0, 0.5)):
        assert level.fixed.outline is not None and level.fixed.outline.max() == pytest.approx(2, rel=1e-3)
        assert level.fixed.colour is not None and level.fixed.colour.shape == grid.shape
        assert level.fixed.tone.any()


class _Pushed:
    """A level whose every node is pushed by a force of its own."""

    nodes, stride = (16, 18), 4

    def __init__(self, push: np.ndarray) -> None:
        self.push = push

    def seen(self, field: np.ndarray, tone: float) -> None:
        """Nothing to see."""

    def terms(self, field: np.ndarray, seen: None) -> np.ndarray:
        """A spring to where the node is pushed."""
        terms = np.zeros((*self.nodes, 7), np.float32)
        terms[..., 0] = terms[..., 2] = terms[..., 6] = 1
        terms[..., 3:5] = field - self.push
        terms[..., 5] = ((field - self.push) ** 2).sum(axis=-1)
        return terms


def test_nodes_that_would_fold_do_not_keep_the_others_from_moving() -> None:
    push = np.full((16, 18, 2), 3.0, np.float32)
    push[3, 3], push[3, 4] = (3.0, 12.0), (3.0, -12.0)
    plan = Bending(alpha=1e-3, ridge=1e-3, window=0.0, iterations=12)
    halved, mended = (node_flow.bend(_Pushed(push), STILL, replace(plan, mended=m))[0] for m in (False, True))
    assert least_jacobian(mended, 4) >= 0.99 * MIN_JACOBIAN
    np.testing.assert_allclose(mended[9:], 3.0, atol=0.05)
    assert np.abs(halved[9:] - 3.0).max() > 0.3, "there must be something that mending is for"


def test_starts_that_cost_far_more_or_lie_alike_are_dropped() -> None:
    def shifted(by: float) -> np.ndarray:
        return np.array([[1.0, 0, 0], [0, 1, by], [0, 0, 1]])

    refined = [(0.50, shifted(20)), (0.40, shifted(0)), (0.41, shifted(0.5)), (0.9, shifted(40)), (0.55, shifted(60))]
    kept = _promising(refined, 8, GRID)
    assert [m[1, 2] for m in kept] == [0, 20, 60]
    assert [m[1, 2] for m in _promising(refined, 2, GRID)] == [0, 20]
