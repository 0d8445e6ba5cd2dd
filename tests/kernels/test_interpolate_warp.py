"""The warp: compiled = readable = scipy, its gradient against finite differences, the same for any tiling and threads."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numba
import numpy as np
import pytest
from scipy import ndimage

from histomri.kernels.interpolate import CoarseField, Tile, field_reference, warp, warp_reference, warp_with_gradient

# float32 weights and sums of values of about 1; a coordinate is right to 1e-6 pixels
TOLERANCE = 1e-5
RANDOM = np.random.default_rng(7)
MATRICES = {
    2: np.array([[0.8, -0.3531, 5.317], [0.2973, 1.1, -4.219], [0, 0, 1]]),
    3: np.array([[0.7, 0.2137, -0.1, 0.613], [-0.3, 1.2, 0.1713, -1.437], [0.1, 0.2931, 0.9, -2.111], [0, 0, 0, 1]]),
}
SIZES = {2: (37, 151), 3: (13, 19, 29)}
# one run of pixels and a bit, so that the second run of a row is short
SHAPES = {2: (41, 140), 3: (12, 7, 131)}


def _image(ndim: int, channels: int = 2, kind: Any = np.float32) -> np.ndarray:
    values = RANDOM.normal(size=(*SIZES[ndim], channels))
    return np.clip(values * 40 + 128, 0, 255).astype(kind) if kind != np.float32 else values.astype(kind)


def _dense(ndim: int) -> np.ndarray:
    return RANDOM.normal(size=(*SHAPES[ndim], ndim)).astype(np.float32)


def _coarse(ndim: int) -> CoarseField:
    values = RANDOM.normal(size=(*(5, 4, 6)[:ndim], ndim)).astype(np.float32)
    return CoarseField(values, (0.11, 0.19, 0.037)[:ndim], (-0.3, 0.2, 0.7)[:ndim])


FIELDS = {"affine": lambda ndim: None, "dense": _dense, "coarse": _coarse}


def _points(ndim: int, field: Any) -> np.ndarray:
    nodes = np.stack(np.meshgrid(*map(np.arange, SHAPES[ndim]), indexing="ij"), axis=-1).astype(float)
    if isinstance(field, CoarseField):
        lattice = np.moveaxis(nodes * field.scale + field.offset, -1, 0)
        parts = [ndimage.map_coordinates(field.values[..., k], lattice, order=1, mode="nearest") for k in range(ndim)]
        field = np.stack(parts, axis=-1)
    nodes = nodes if field is None else nodes + field
    return nodes @ MATRICES[ndim][:-1, :-1].T + MATRICES[ndim][:-1, -1]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", FIELDS)
def test_linear_is_scipys_interpolation(ndim: int, name: str) -> None:
    moving, field = _image(ndim), FIELDS[name](ndim)
    where = np.moveaxis(_points(ndim, field), -1, 0)
    expected = [ndimage.map_coordinates(moving[..., c].astype(float), where, order=1, mode="grid-constant") for c in range(2)]
    assert 0.1 < (expected[0] != 0).mean() < 0.95, "both the image and what lies outside must be part of the test"
    np.testing.assert_allclose(warp(moving, MATRICES[ndim], SHAPES[ndim], field), np.stack(expected, -1), atol=TOLERANCE)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("outside", ["zero", "edge"])
def test_compiled_is_the_formula(ndim: int, name: str, outside: Any) -> None:
    moving, field = _image(ndim), FIELDS[name](ndim)
    for order in ("nearest", "linear", "cubic"):
        expected, slopes = warp_reference(moving, MATRICES[ndim], SHAPES[ndim], field, order, outside=outside)
        found = warp(moving, MATRICES[ndim], SHAPES[ndim], field, order, outside=outside)  # type: ignore[arg-type]
        if order == "nearest":
            assert (found != expected).mean() < 1e-4, "but for points halfway between two pixels"
            continue
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=order)
        if name == "affine":
            continue  # whole coordinates, where the gradient of linear weights jumps, are part of it
        values, gradient = warp_with_gradient(moving, MATRICES[ndim], SHAPES[ndim], field, order, outside=outside)  # type: ignore[arg-type]
        np.testing.assert_array_equal(values, found)
        assert (np.abs(gradient - slopes) > 10 * TOLERANCE).mean() < 1e-4, order


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_the_gradient_is_that_of_the_values_by_the_displacement(ndim: int, order: Any) -> None:
    smooth = ndimage.gaussian_filter(RANDOM.normal(size=SIZES[ndim]) * 20, 2).astype(np.float32)
    field, step = _dense(ndim), 2.0**-6
    _, gradient = warp_with_gradient(smooth, MATRICES[ndim], SHAPES[ndim], field, order)
    for axis in range(ndim):
        away = np.zeros(ndim, np.float32)
        away[axis] = step
        ahead, behind = (warp(smooth, MATRICES[ndim], SHAPES[ndim], field + s * away, order) for s in (1, -1))
        difference = (ahead.astype(float) - behind) / (2 * step)
        # where the two points lie in different cells, linear weights have another slope on each side
        wrong = np.abs(difference - gradient[..., axis]) > 5e-3 * np.abs(gradient).max()
        assert wrong.mean() < (0.12 if order == "linear" else 0.02)
        assert np.abs(gradient[..., axis]).max() > 0.1


def test_cubic_weights_give_a_parabola_back() -> None:
    y, x = np.meshgrid(np.arange(30.0), np.arange(150.0), indexing="ij")
    moving = (0.01 * y * y - 0.02 * y * x + 0.003 * x * x + y).astype(np.float32)
    shift = np.array([[1, 0, 3.3], [0, 1, 4.6], [0, 0, 1]])
    found, slopes = warp_with_gradient(moving, shift, (20, 140), order="cubic")
    y, x = y[:20, :140] + 3.3, x[:20, :140] + 4.6
    np.testing.assert_allclose(found, 0.01 * y * y - 0.02 * y * x + 0.003 * x * x + y, atol=2e-4)
    np.testing.assert_allclose(slopes[..., 0], 0.02 * y - 0.02 * x + 1, atol=2e-4)
    np.testing.assert_allclose(slopes[..., 1], -0.02 * y + 0.006 * x, atol=2e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_identity_keeps_every_bit(ndim: int) -> None:
    moving = _image(ndim)
    nothing = np.zeros((*SIZES[ndim], ndim), np.float32)
    for order, field in product(("nearest", "linear", "cubic"), (None, nothing)):
        np.testing.assert_array_equal(warp(moving, np.eye(ndim + 1), SIZES[ndim], field, order), moving)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_whole_numbers_are_read_as_they_are(kind: Any) -> None:
    for ndim, channels in ((2, 3), (2, 1), (3, 1)):
        moving = _image(ndim, channels, kind)
        expected = warp_reference(moving, MATRICES[ndim], SHAPES[ndim])[0]
        np.testing.assert_allclose(warp(moving, MATRICES[ndim], SHAPES[ndim]), expected, atol=1e-3)
        labels = warp(moving, MATRICES[ndim], SHAPES[ndim], order="nearest")
        assert labels.dtype == kind and set(np.unique(labels)) <= {0, *np.unique(moving)}


def test_an_image_without_channels_is_the_one_with_one() -> None:
    moving = _image(2, 1)
    plain = warp_with_gradient(moving[..., 0], MATRICES[2], SHAPES[2])
    for found, expected in zip(plain, warp_with_gradient(moving, MATRICES[2], SHAPES[2]), strict=True):
        np.testing.assert_array_equal(found, expected[..., 0] if expected.ndim == 3 else expected[..., 0, :])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", FIELDS)
def test_any_tiling_gives_the_same_bits(ndim: int, name: str) -> None:
    moving, field = _image(ndim), FIELDS[name](ndim)
    whole = warp_with_gradient(moving, MATRICES[ndim], SHAPES[ndim], field)
    cuts = [[0, n // 3, n // 3 + 1, n] for n in SHAPES[ndim]]
    low, high = np.floor(_points(ndim, field)).min((*range(ndim),)), np.ceil(_points(ndim, field)).max((*range(ndim),))
    first = np.clip(low, 0, 3).astype(int)
    box = moving[tuple(slice(int(a), int(b) + 2) for a, b in zip(first, high, strict=True))]
    for spans in product(*(pairwise(c) for c in cuts)):
        part = tuple(slice(a, b) for a, b in spans)
        tile = Tile(tuple(a for a, _ in spans), tuple(int(k) for k in first))
        own = field[part] if isinstance(field, np.ndarray) else field
        shape = [b - a for a, b in spans]
        for found, expected in zip(warp_with_gradient(box, MATRICES[ndim], shape, own, tile=tile), whole, strict=True):
            np.testing.assert_array_equal(found, expected[part])


def test_a_box_of_the_moving_image_is_enough() -> None:
    moving, far = _image(2), np.array([[1, 0.01, 12.3], [-0.02, 1, 60.7], [0, 0, 1]])
    whole = warp(moving, far, (15, 40), order="cubic")
    box = warp(moving[8:34, 55:110], far, (15, 40), order="cubic", tile=Tile((0, 0), (8, 55)))
    assert whole.all()
    np.testing.assert_array_equal(box, whole)


def test_more_threads_change_no_bit(two_threads: None) -> None:
    for ndim in (2, 3):
        moving, field, results = _image(ndim), _dense(ndim), []
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(
                [
                    *warp_with_gradient(moving, MATRICES[ndim], SHAPES[ndim], field),
                    *(warp(moving, MATRICES[ndim], SHAPES[ndim], field, order) for order in ("nearest", "cubic")),  # type: ignore[arg-type]
                ]
            )
        for one, two in zip(*results, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_coarse_field_is_the_same_field_written_out() -> None:
    for ndim in (2, 3):
        moving, field = _image(ndim), _coarse(ndim)
        dense = field_reference(field, SHAPES[ndim]).astype(np.float32)
        direct = warp(moving, MATRICES[ndim], SHAPES[ndim], field)
        np.testing.assert_allclose(direct, warp(moving, MATRICES[ndim], SHAPES[ndim], dense), atol=TOLERANCE)


def test_what_is_not_a_number_is_outside() -> None:
    moving, field = np.ones((9, 9), np.float32), np.zeros((9, 9, 2), np.float32)
    field[3, 4], field[5, 5, 0], field[6, 6, 1] = np.nan, np.inf, -np.inf
    for order in ("nearest", "linear", "cubic"):
        found = warp(moving, np.eye(3), (9, 9), field, order)  # type: ignore[arg-type]
        assert found[3, 4] == found[5, 5] == found[6, 6] == 0
        assert found.sum() == 78


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_images_of_a_pixel_or_two(size: tuple[int, int]) -> None:
    moving = RANDOM.normal(size=(*size, 1)).astype(np.float32)
    field = RANDOM.normal(size=(6, 9, 2)).astype(np.float32)
    for order, outside in product(("nearest", "linear", "cubic"), ("zero", "edge")):
        expected = warp_reference(moving, np.eye(3), (6, 9), field, order, outside=outside)[0]
        found = warp(moving, np.eye(3), (6, 9), field, order, outside=outside)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_what_does_not_fit_is_refused() -> None:
    moving, field = _image(2), _dense(2)
    for arguments, words in (
        ((moving, np.eye(4), SHAPES[2]), "matrix"),
        ((moving, np.eye(3), (5, 5), field), "displacement field"),
        ((moving, np.eye(3), SHAPES[2], CoarseField(field, (1.0,), (0.0,))), "coarse field"),
        ((moving[..., None, None], np.eye(3), SHAPES[2]), "moving image"),
        ((moving, np.eye(3), SHAPES[2], None, "spline"), "order"),
        ((moving, np.eye(2), (5,)), "2D or 3D"),
    ):
        with pytest.raises(ValueError, match=words):
            warp(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient"):
        warp_with_gradient(moving, np.eye(3), SHAPES[2], None, "nearest")  # type: ignore[arg-type]
