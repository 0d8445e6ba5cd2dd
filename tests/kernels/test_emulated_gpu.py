"""The paths of the GPU without one: the CUDA sources run as C++, thread by thread, launched as they are on a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))
from emulated_gpu import COMPILER, emulated_gpu

from histomri.backend import device_of, to_device
from histomri.kernels import cuda, fields
from histomri.kernels.flow import flow_terms, solve
from histomri.kernels.flow_3d import flow_terms_3d, solve_3d
from histomri.kernels.folding import least_jacobian
from histomri.kernels.gaussian import gaussian
from histomri.kernels.interpolate import warp, warp_with_gradient
from histomri.kernels.similarity.passes import evaluated
from histomri.kernels.splat import square_adjoint
from histomri.registration.metrics import METRICS, Information, LocalCorrelation, Metric
from histomri.tiling.similarity import evaluate

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to run the CUDA sources with on the CPU")
RANDOM = np.random.default_rng(4)
SHAPES = [(23, 37), (9, 14, 17)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
VARIED: dict[str, Metric] = {
    **METRICS,
    "lncc wide": LocalCorrelation(radius=4, floor=1e-2),
    "nmi cubic": replace(Information("nmi"), window="cubic", bins=24),
}


@pytest.fixture(autouse=True)
def few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every one has several pixels."""
    monkeypatch.setattr(cuda, "WORKERS", 256)


def case(shape: tuple[int, ...], channels: int = 1) -> list[Any]:
    noise = ndimage.gaussian_filter(RANDOM.normal(size=(2, *shape, channels)), [0] + [1.2] * len(shape) + [0])
    fixed = 0.5 + 0.25 * noise[0] / noise[0].std()
    warped = 0.8 * fixed + 0.06 * noise[1] / noise[1].std()
    weight = np.where(RANDOM.random(shape) < 0.05, 0, RANDOM.uniform(0.2, 1, shape))
    return [a.astype(np.float32) for a in (fixed, warped, weight)]


def there(*arrays: Any) -> list[Any]:
    return [to_device(a, "gpu") for a in arrays]


@each_shape
@pytest.mark.parametrize("name", VARIED)
def test_metrics_are_those_of_the_cpu(name: str, shape: tuple[int, ...]) -> None:
    metric, images = VARIED[name], case(shape, 2)
    value, force = metric.evaluate(*images)
    with emulated_gpu():
        found, slope = metric.evaluate(*there(*images))
        assert device_of(slope) == "gpu"
        assert found == pytest.approx(value, rel=2e-6, abs=2e-6)
        np.testing.assert_allclose(to_device(slope, "cpu"), force, atol=1e-4 * np.abs(force).max())
        assert metric.value(*there(*images)) == pytest.approx(value, rel=2e-6, abs=2e-6)
        again = metric.evaluate(*there(*images))
        assert again[0] == found and (again[1] == slope).all()


@each_shape
@pytest.mark.parametrize("name", METRICS)
def test_features_are_those_of_the_cpu(name: str, shape: tuple[int, ...]) -> None:
    image, _, weight = case(shape, 2)
    for mask in (None, weight > 0):
        features = METRICS[name].features(image, mask)
        with emulated_gpu():
            found = METRICS[name].features(to_device(image, "gpu"), None if mask is None else to_device(mask, "gpu"))
            assert device_of(found) == "gpu"
            np.testing.assert_allclose(to_device(found, "cpu"), features, atol=1e-5 * np.abs(features).max())


@each_shape
@pytest.mark.parametrize("name", VARIED)
def test_metrics_over_tiles_are_those_of_the_whole(name: str, shape: tuple[int, ...]) -> None:
    metric, images = VARIED[name], case(shape)
    value, force = evaluated(metric.passes, *images)
    with emulated_gpu():
        found, slope = evaluate(metric.passes, *there(*images), tuple(n // 2 for n in shape))
        assert found == pytest.approx(value, rel=2e-6, abs=2e-6)
        np.testing.assert_allclose(to_device(slope, "cpu"), force, atol=1e-4 * np.abs(force).max())


@pytest.mark.parametrize("name", VARIED)
def test_what_has_no_weight_or_does_not_vary_is_as_on_the_cpu(name: str) -> None:
    metric, (fixed, warped, weight) = VARIED[name], case(SHAPES[0])
    scale = np.abs(metric.evaluate(fixed, warped, weight)[1]).max()
    for images in ((fixed, warped, 0 * weight), (fixed, np.full_like(warped, 0.4), weight)):
        value, force = metric.evaluate(*images)
        with emulated_gpu():
            found, slope = metric.evaluate(*there(*images))
            assert found == pytest.approx(value, rel=1e-5, abs=1e-6)
            np.testing.assert_allclose(to_device(slope, "cpu"), force, atol=1e-5 * scale)


@each_shape
def test_warps_and_fields_are_those_of_the_cpu(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    moving = ndimage.gaussian_filter(RANDOM.normal(size=(*shape, 2)), [1] * ndim + [0]).astype(np.float32)
    field = ndimage.gaussian_filter(6 * RANDOM.normal(size=(*shape, ndim)), [2] * ndim + [0]).astype(np.float32)
    matrix = np.eye(ndim + 1) + 0.05 * np.triu(np.ones((ndim + 1, ndim + 1)), 1)
    calls: list[Any] = [
        lambda m, u: warp(m, matrix, shape, u, "cubic"),
        lambda m, u: warp_with_gradient(m, matrix, shape, u, outside="edge")[0],
        lambda m, u: gaussian(u, 1.3, ndim),
        lambda m, u: fields.compose(u, u),
        lambda m, u: fields.invert(u / 4).field,
        lambda m, u: fields.exponential(u),
        lambda m, u: fields.jacobian_determinant(u),
    ]
    for call in calls:
        with emulated_gpu():
            found = to_device(call(*there(moving, field)), "cpu")
        np.testing.assert_allclose(found, call(moving, field), atol=1e-5)


@each_shape
def test_folds_are_those_of_the_cpu(shape: tuple[int, ...]) -> None:
    field = RANDOM.normal(scale=0.3, size=(*shape, len(shape))).astype(np.float32)
    mask = RANDOM.random(shape) < 0.5
    for inside in (None, mask, np.zeros_like(mask)):
        with emulated_gpu():
            found = least_jacobian(to_device(field, "gpu"), None if inside is None else to_device(inside, "gpu"))
        assert found == pytest.approx(least_jacobian(field, inside), rel=1e-6)


@each_shape
def test_gauss_newton_terms_and_solves_are_those_of_the_cpu(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    fixed, moving, weight = case(shape, 3)
    field = RANDOM.uniform(-1, 1, (*shape, ndim)).astype(np.float32)
    matrix = np.eye(ndim + 1) + 0.02 * np.triu(np.ones((ndim + 1, ndim + 1)), 1)
    terms = (flow_terms if ndim == 2 else flow_terms_3d)(fixed, moving, weight, matrix, field)
    solver: Any = (lambda t: solve(t, 0.1)) if ndim == 2 else (lambda t: solve_3d(t, 0.1, 1.0))
    with emulated_gpu():
        images = there(fixed, moving, weight)
        found = (flow_terms if ndim == 2 else flow_terms_3d)(*images, matrix, to_device(field, "gpu"))
        np.testing.assert_allclose(to_device(found, "cpu"), terms, atol=1e-4 * np.abs(terms).max())
        step = to_device(solver(to_device(terms, "gpu")), "cpu")
    np.testing.assert_allclose(step, solver(terms), atol=1e-5)


@each_shape
def test_the_transpose_of_a_squaring_is_that_of_the_cpu(shape: tuple[int, ...]) -> None:
    field, force = RANDOM.normal(size=(2, *shape, len(shape)))
    field = field.astype(np.float32)
    expected = square_adjoint(field, force)
    with emulated_gpu():
        found = to_device(square_adjoint(*there(field, force)), "cpu")
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_the_emulated_device_refuses_what_a_device_refuses() -> None:
    with emulated_gpu(limit=1000):
        array = to_device(np.ones(100, np.float32), "gpu")
        with pytest.raises(TypeError):
            np.asarray(array)
        with pytest.raises(TypeError):
            array + np.ones(100, np.float32)
        with pytest.raises(MemoryError):
            to_device(np.ones(200, np.float32), "gpu")
        del array
        to_device(np.ones(200, np.float32), "gpu")
