"""The chain rule from the metric to the parameters, held against finite differences of the whole objective."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenes import bent_scene, centred

from histomri.registration.engine.checks import source
from histomri.registration.engine.models import BSpline, Diffeomorphic, Linear, Velocity, frame_of
from histomri.registration.engine.objective import Guidance, Objective
from histomri.registration.engine.parts import matrix_force
from histomri.registration.engine.pyramid import axis_factors, factors, make_level, shrink
from histomri.registration.metrics import METRICS

RANDOM = np.random.default_rng(11)


def objective(name: str, ndim: int, metric: str = "ssd", **more: Any) -> Objective:
    """Weights that vanish near the border, so that nothing enters or leaves."""
    scene = bent_scene(ndim)
    matrix = np.eye(ndim + 1)
    matrix[0, 1], matrix[:-1, -1] = 0.05, 0.03
    level = make_level(source(scene.fixed, None, ""), source(scene.moving, None, ""), matrix, 1, METRICS[metric])
    level.weight[...] = 0
    level.weight[(slice(6, -6),) * ndim] = 1
    shape = level.fixed.shape
    models: dict[str, Any] = {
        "affine": Linear("affine", level.fixed, level.moving, matrix, frame_of(level.fixed.points().reshape(-1, ndim))),
        "bspline": BSpline(shape, 6.0),
        "diffeomorphic": Diffeomorphic(shape, 2.0, 0.0).chart(),
        "velocity": Velocity(shape, 2.0),
    }
    return Objective(level, METRICS[metric], models[name], level.onto(matrix), **more)


def inner(field: np.ndarray, margin: int) -> np.ndarray:
    """The field, 0 near the border."""
    inside = (slice(margin, -margin),) * field.shape[-1]
    out = np.zeros_like(field)
    out[inside] = field[inside]
    return out


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["affine", "bspline", "diffeomorphic", "velocity"])
def test_gradient_is_the_derivative(name: str, ndim: int) -> None:
    points = RANDOM.uniform(-2, 2, (6, ndim))
    guide = Guidance(points, points + 0.2, 0.5, 0.3)
    problem = objective(name, ndim, "ssd", guidance=guide, penalties={"bending": 0.1} if name != "affine" else {})
    theta = RANDOM.normal(size=problem.model.start().shape) * (0.02 if name == "affine" else 0.3)
    along = RANDOM.normal(size=theta.shape)
    if name in ("diffeomorphic", "velocity"):
        along = inner(along, 7)  # at the border the Gaussian is not its own transpose
    along *= 0.05 / problem.reach(along)
    _, gradient = problem.at(theta)
    ends = [problem.at(problem.shift(theta, s * along))[0] for s in (1.0, -1.0)]
    # every squaring of a velocity has a kink at each node that a point passes
    margin = 0.1 if name == "velocity" else 0.03
    assert float((gradient * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=margin, abs=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_levenberg_marquardt_and_the_gradient_speak_of_one_objective(ndim: int) -> None:
    points = RANDOM.uniform(-2, 2, (6, ndim))
    problem = objective("affine", ndim, "ssd", guidance=Guidance(points, points + 0.2, 0.5, 0.3))
    theta = RANDOM.normal(size=problem.model.start().shape) * 0.01
    value, gradient = problem.at(theta)
    terms = problem.terms(theta)
    assert terms[0] == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(2 * terms[1], gradient, rtol=1e-2, atol=1e-3 * np.abs(gradient).max())
    assert np.linalg.eigvalsh(terms[2]).min() > 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_gauss_newton_goes_downhill(ndim: int) -> None:
    problem = objective("diffeomorphic", ndim, "mind")
    theta = problem.model.start()
    value, update = problem.newton(theta)
    assert value == pytest.approx(problem.at(theta)[0], rel=1e-4)
    assert problem.newton(problem.take(theta, update))[0] < 0.9 * value
    assert np.linalg.norm(update, axis=-1).max() <= 1.0 + 1e-5


def test_where_the_images_hardly_meet_nobody_goes() -> None:
    problem = objective("affine", 2, least_weight=2000.0)
    far = np.zeros(6)
    far[0] = 1.0
    assert np.isfinite(problem.at(np.zeros(6))[0])
    assert problem.at(far)[0] == np.inf and problem.terms(far)[0] == np.inf


def test_force_on_a_matrix_is_the_sum_over_pixels() -> None:
    force = RANDOM.normal(size=(4, 5, 6, 3)).astype(np.float32)
    nodes = np.stack(np.meshgrid(*map(np.arange, (4, 5, 6)), indexing="ij"), -1).reshape(-1, 3)
    expected = force.reshape(-1, 3).astype(float).T @ np.concatenate([nodes, np.ones((120, 1))], axis=1)
    np.testing.assert_allclose(matrix_force(force), expected, rtol=1e-6)


def test_levels_average_what_the_mask_holds() -> None:
    grid = centred(10, 0.5, 2)
    data = np.arange(100, dtype=np.float32).reshape(10, 10, 1)
    mask = np.ones((10, 10), bool)
    mask[0, 0], mask[4:8, 4:8] = False, False
    small = shrink(source_of(grid, data, mask), np.array([4, 4]))
    assert small.grid.shape == (3, 3) and small.mask.tolist() == [[True, True, True], [True, False, True], [True, True, True]]
    assert small.data[0, 0, 0] == pytest.approx(data[:4, :4][mask[:4, :4]].mean())
    assert small.data[2, 2, 0] == pytest.approx(data[8:, 8:].mean())
    np.testing.assert_allclose(small.grid.to_world([0, 0]), grid.to_world([1.5, 1.5]))


def source_of(grid: Any, data: np.ndarray, mask: np.ndarray) -> Any:
    from histomri.registration.engine.pyramid import Source

    return Source(grid, data, mask)


def test_thick_slices_are_averaged_less() -> None:
    from histomri.core import Grid

    grid = Grid((20, 256, 256), np.array([4.0, 1.0, 1.0]))
    assert axis_factors(grid, 4.0).tolist() == [1, 4, 4]
    assert axis_factors(grid, 8.0).tolist() == [2, 8, 8]
    assert factors(grid, linear=True)[-1] >= 4 and factors(Grid((300, 200), 1.0), linear=False)[-1] == 1
