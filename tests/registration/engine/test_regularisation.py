"""Regularisers: exact gradients, and what each of them must not punish."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.registration.engine.regularisation import TERMS, landmark_distance, penalty

RANDOM = np.random.default_rng(1)
CASES = [((7, 9), np.array([1.3, 0.7])), ((5, 4, 6), np.array([1.3, 0.7, 2.0]))]


def linear_field(shape: tuple[int, ...], spacing: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``u = M x`` in length units, as a field in pixels."""
    x = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * spacing
    return x @ matrix.T / spacing


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_gradient_is_the_derivative_of_the_value(name: str, shape: tuple[int, ...], spacing: np.ndarray) -> None:
    field, along = RANDOM.normal(size=(2, *shape, len(shape))) * 0.1
    _, gradient = TERMS[name](field, spacing)
    step = 1e-6
    slope = (TERMS[name](field + step * along, spacing)[0] - TERMS[name](field - step * along, spacing)[0]) / (2 * step)
    assert (gradient * along).sum() == pytest.approx(slope, rel=1e-6)


def test_the_gradient_of_volume_pushes_a_fold_back() -> None:
    field = np.zeros((6, 6, 2))
    field[3, 3, 1], field[3, 4, 1] = 1.5, -1.5
    value, gradient = TERMS["volume"](field, np.ones(2))
    after, _ = TERMS["volume"](field - 0.5 * gradient / np.abs(gradient).max(), np.ones(2))
    assert np.isfinite(value) and after < value


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_what_is_free(shape: tuple[int, ...], spacing: np.ndarray) -> None:
    ndim = len(shape)
    affine = linear_field(shape, spacing, RANDOM.normal(size=(ndim, ndim)) * 0.1)
    turn = RANDOM.normal(size=(ndim, ndim)) * 0.1
    turn = linear_field(shape, spacing, turn - turn.T)
    shift = np.ones((*shape, ndim))
    shear = np.zeros((ndim, ndim))
    shear[0, 1] = 0.3
    for name in TERMS:
        assert TERMS[name](shift, spacing)[0] == pytest.approx(0, abs=1e-20)
    assert TERMS["bending"](affine, spacing)[0] == pytest.approx(0, abs=1e-20)
    assert TERMS["curvature"](affine, spacing)[0] == pytest.approx(0, abs=1e-20)
    assert TERMS["elastic"](turn, spacing)[0] == pytest.approx(0, abs=1e-20)
    assert TERMS["volume"](linear_field(shape, spacing, shear), spacing)[0] == pytest.approx(0, abs=1e-20)
    assert TERMS["diffusion"](turn, spacing)[0] > 1e-6 and TERMS["volume"](affine, spacing)[0] > 1e-6


def test_known_values() -> None:
    """Stretched by a fifth along x, in any spacing: |dv|^2 = 0.04, log(1.2)^2; a parabola's second derivative."""
    spacing = np.array([2.0, 0.5])
    field = linear_field((6, 8), spacing, np.diag([0.0, 0.2]))
    assert TERMS["diffusion"](field, spacing)[0] == pytest.approx(0.04 * 7 / 8)
    assert TERMS["volume"](field, spacing)[0] == pytest.approx(np.log(1.2) ** 2)
    assert TERMS["elastic"](field, spacing)[0] == pytest.approx(0.04 + 0.25 * 0.04)
    x = np.arange(8) * 0.5
    bent = np.zeros((6, 8, 2))
    bent[..., 1] = 0.3 * x**2 / 0.5
    assert TERMS["bending"](bent, spacing)[0] == pytest.approx(0.36 * 6 / 8)
    assert TERMS["curvature"](bent, spacing)[0] == pytest.approx(0.36 * 6 / 8)


def test_growing_and_shrinking_cost_the_same() -> None:
    spacing = np.ones(2)
    grown, shrunk = (TERMS["volume"](linear_field((6, 6), spacing, np.eye(2) * (s - 1)), spacing)[0] for s in (1.25, 0.8))
    assert grown == pytest.approx(shrunk)


def test_axes_of_one_or_two_nodes_have_no_curvature() -> None:
    field = RANDOM.normal(size=(1, 2, 5, 3))
    for name in TERMS:
        value, gradient = TERMS[name](field, np.ones(3))
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_weights_add_up_and_landmarks_have_a_gradient() -> None:
    field = RANDOM.normal(size=(5, 6, 2))
    both = penalty({"bending": 2.0, "diffusion": 0.5}, field, np.ones(2))
    parts = [TERMS[n](field, np.ones(2)) for n in ("bending", "diffusion")]
    assert both[0] == pytest.approx(2 * parts[0][0] + 0.5 * parts[1][0])
    np.testing.assert_allclose(both[1], 2 * parts[0][1] + 0.5 * parts[1][1])
    mapped, goal, along = RANDOM.normal(size=(3, 7, 2))
    slope = landmark_distance(mapped + 1e-6 * along, goal, 2.0)[0] - landmark_distance(mapped - 1e-6 * along, goal, 2.0)[0]
    assert (landmark_distance(mapped, goal, 2.0)[1] * along).sum() == pytest.approx(slope / 2e-6, rel=1e-6)
