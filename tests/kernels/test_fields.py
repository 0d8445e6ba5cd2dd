"""Displacement fields composed, inverted, exponentiated: against analytic maps, SimpleITK and the readable formulas."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from histomri.kernels import fields

# float32 displacements of a few pixels
TOLERANCE = 1e-5
RANDOM = np.random.default_rng(11)
SHAPES = [(47, 133), (11, 17, 23)]


def _smooth(shape: tuple[int, ...], largest: float = 1.5) -> np.ndarray:
    """A smooth field of at most ``largest`` pixels, 0 at the edges."""
    field = ndimage.gaussian_filter(RANDOM.normal(size=(*shape, len(shape))), (*(3.0 for _ in shape), 0))
    fade = np.ones(shape)
    for axis, n in enumerate(shape):
        ramp = np.clip(np.minimum(np.arange(n), n - 1 - np.arange(n)) / 4, 0, 1)
        fade *= ramp.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    field *= fade[..., None]
    return (field * largest / np.abs(field).max()).astype(np.float32)


def _linear(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The field of ``p -> c + M (p - c)`` about the centre."""
    nodes = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - (np.array(shape) - 1) / 2
    return (nodes @ (matrix - np.eye(len(shape))).T).astype(np.float32)


def _inner(field: np.ndarray, margin: int = 4) -> np.ndarray:
    return field[tuple(slice(margin, -margin) for _ in range(field.shape[-1]))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled_is_the_formula(shape: tuple[int, ...]) -> None:
    first, second = _smooth(shape), RANDOM.normal(size=(*shape, len(shape))).astype(np.float32)
    np.testing.assert_allclose(fields.compose(first, second), fields.compose_reference(first, second), atol=TOLERANCE)
    np.testing.assert_allclose(fields.exponential(3 * first, 4), fields.exponential_reference(3 * first, 4), atol=TOLERANCE)
    expected = fields.jacobian_determinant_reference(second)
    np.testing.assert_allclose(fields.jacobian_determinant(second), expected, atol=TOLERANCE * 10)
    inverse = fields.invert(first, tolerance=1e-6, iterations=30)
    np.testing.assert_allclose(inverse.field, fields.invert_reference(first, 30), atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_maps_compose_and_exponentiate_as_matrices(shape: tuple[int, ...]) -> None:
    n = len(shape)
    one, two = (np.eye(n) + 0.02 * RANDOM.normal(size=(n, n)) for _ in range(2))
    found = fields.compose(_linear(one, shape), _linear(two, shape))
    np.testing.assert_allclose(_inner(found), _inner(_linear(two @ one, shape)), atol=1e-4)
    np.testing.assert_allclose(fields.jacobian_determinant(_linear(one, shape)), np.linalg.det(one), atol=1e-5)
    spread = 0.05 * (one + two - np.diag(np.diag(one + two)))
    velocity, power = _linear(np.eye(n) + spread, shape), np.eye(n)
    for k in range(12, 0, -1):
        power = np.eye(n) + spread @ power / k
    np.testing.assert_allclose(_inner(fields.exponential(velocity, 8)), _inner(_linear(power, shape)), atol=0.02)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_inverse_undoes_the_field_both_ways(shape: tuple[int, ...]) -> None:
    field = _smooth(shape, 0.5)
    inverse = fields.invert(field, tolerance=1e-4)
    assert inverse.residual <= 1e-4 and inverse.iterations < 50
    assert np.abs(fields.compose(inverse.field, field)).max() < 2e-4
    assert np.abs(fields.compose(field, inverse.field)).max() < 0.1, "the inverse is linear between pixels"
    assert np.abs(field).max() == pytest.approx(0.5)


def test_a_field_that_folds_has_no_inverse_and_says_so() -> None:
    field = np.zeros((30, 30, 2), np.float32)
    field[..., 1] = 4 * np.sin(1.3 * np.arange(30))
    assert fields.jacobian_determinant(field).min() < 0
    assert fields.invert(field).residual > 0.1


def test_the_exponential_of_minus_v_is_the_inverse_of_that_of_v() -> None:
    velocity = _smooth((60, 70), 1.0)
    there, back = fields.exponential(velocity), fields.exponential(-velocity)
    assert np.abs(fields.compose(there, back)).max() < 0.05 < np.abs(there).max()
    assert fields.jacobian_determinant(there).min() > 0
    assert fields.squarings(np.zeros((4, 4, 2), np.float32)) == 0 and fields.squarings(velocity) >= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_determinant_is_simpleitks(shape: tuple[int, ...]) -> None:
    field = _smooth(shape, 3.0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(field[..., ::-1], np.float64), isVector=True)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(image))
    inside = (slice(1, -1),) * len(shape)
    np.testing.assert_allclose(fields.jacobian_determinant(field)[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_moved_is_nothing(shape: tuple[int, ...]) -> None:
    nothing, field = np.zeros((*shape, len(shape)), np.float32), _smooth(shape)
    np.testing.assert_array_equal(fields.compose(nothing, field), field)
    np.testing.assert_array_equal(fields.compose(field, nothing), field)
    np.testing.assert_array_equal(fields.exponential(nothing), nothing)
    np.testing.assert_array_equal(fields.jacobian_determinant(nothing), 1)


def test_more_threads_change_no_bit(two_threads: None) -> None:
    for shape in SHAPES:
        field, results = _smooth(shape), []
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(
                (
                    fields.compose(field, field),
                    fields.invert(field).field,
                    fields.exponential(field),
                    fields.jacobian_determinant(field),
                )
            )
        for one, two in zip(*results, strict=True):
            np.testing.assert_array_equal(one, two)


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        fields.compose(np.zeros((4, 4, 2), np.float32), np.zeros((4, 5, 2), np.float32))
    with pytest.raises(ValueError, match="displacement field"):
        fields.jacobian_determinant(np.zeros((4, 4, 3), np.float32))
