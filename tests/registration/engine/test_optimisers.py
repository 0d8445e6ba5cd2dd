"""Optimisers on functions whose minimum is known; what they say when there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from histomri.core import InputError
from histomri.registration.engine.optimisers import OPTIMISERS, Function, Outcome, Settings

GENERAL = ("lbfgs", "adam", "gradient_descent", "cmaes")
CURVED = np.diag([1.0, 4.0, 25.0])
CENTRE = np.array([1.0, -2.0, 0.5])


def bowl(theta: np.ndarray) -> tuple[float, np.ndarray]:
    off = theta - CENTRE
    return float(off @ CURVED @ off) - 3.0, 2 * CURVED @ off


def rosenbrock(theta: np.ndarray) -> tuple[float, np.ndarray]:
    x, y = theta
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2, np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


def rosenbrock_terms(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    x, y = theta
    r, j = np.array([1 - x, 10 * (y - x**2)]), np.array([[-1.0, 0.0], [-20 * x, 10.0]])
    return float(r @ r), j.T @ r, j.T @ j


def run(name: str, function: Callable[[np.ndarray], tuple[float, np.ndarray]], start: list[float], **settings: float) -> Outcome:
    return OPTIMISERS[name](Function(function), np.array(start), Settings(**{"iterations": 400, "tolerance": 1e-6, **settings}))


@pytest.mark.parametrize("name", GENERAL)
def test_a_bowl_has_one_bottom(name: str) -> None:
    """Its value at the bottom is below 0, as that of information is: no criterion may divide by the value."""
    found = run(name, bowl, [4.0, 3.0, -2.0], step=0.5)
    assert found.status == "converged", found.reason
    np.testing.assert_allclose(found.theta, CENTRE, atol=0.03)
    assert found.value_after == pytest.approx(-3.0, abs=0.01)
    assert found.value_after == pytest.approx(bowl(found.theta)[0]) and found.trace[0] == found.value_before


@pytest.mark.parametrize("name", ["lbfgs", "cmaes"])
def test_a_bent_valley_is_followed(name: str) -> None:
    found = run(name, rosenbrock, [-1.2, 1.0], step=0.3)
    assert found.status == "converged"
    np.testing.assert_allclose(found.theta, [1.0, 1.0], atol=0.02)


def test_levenberg_marquardt_follows_a_bent_valley() -> None:
    found = OPTIMISERS["levenberg_marquardt"](Function(rosenbrock, rosenbrock_terms), np.array([-1.2, 1.0]), Settings())
    assert found.status == "converged"
    np.testing.assert_allclose(found.theta, [1.0, 1.0], atol=1e-4)
    assert len(found.trace) < 60


@pytest.mark.parametrize("name", GENERAL)
def test_out_of_iterations_is_stopped_and_has_the_best(name: str) -> None:
    found = run(name, bowl, [40.0, 30.0, -20.0], iterations=4, step=0.5)
    assert found.status == "stopped" and "ran out" in found.reason
    assert found.value_after < found.value_before
    assert bowl(found.theta)[0] == pytest.approx(found.value_after)


def test_out_of_time_is_stopped() -> None:
    found = run("gradient_descent", bowl, [40.0, 30.0, -20.0], step=0.001, seconds=0.0)
    assert found.status == "stopped" and "time" in found.reason


@pytest.mark.parametrize("name", GENERAL)
def test_at_the_bottom_there_is_nothing_to_do(name: str) -> None:
    found = run(name, bowl, list(CENTRE))
    assert found.status == "converged"
    np.testing.assert_allclose(found.theta, CENTRE, atol=1e-3)


def test_a_diverging_optimiser_returns_the_best_so_far_marked_failed() -> None:
    """The gradient points the wrong way after two steps."""
    calls = []

    def liar(theta: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(theta)
        value, gradient = bowl(theta)
        return value, gradient if len(calls) < 4 else -gradient

    found = run("adam", liar, [4.0, 3.0, -2.0], step=3.0, window=1000, iterations=1000)
    assert found.status == "failed" and "ran away" in found.reason
    assert found.value_after == pytest.approx(min(bowl(t)[0] for t in calls))
    assert found.value_after <= found.value_before


@pytest.mark.parametrize("name", GENERAL)
def test_values_that_are_not_finite_fail_at_the_start(name: str) -> None:
    found = run(name, lambda theta: (np.nan, np.full(2, np.nan)), [1.0, 2.0])
    assert found.status == "failed"
    np.testing.assert_array_equal(found.theta, [1.0, 2.0])


@pytest.mark.parametrize("name", GENERAL)
def test_nobody_crosses_a_wall(name: str) -> None:
    """Infinite beyond x = 0.5, where the bottom would be at 1."""

    def walled(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return bowl(theta) if theta[0] < 0.5 else (np.inf, np.zeros(3))

    found = run(name, walled, [-3.0, 3.0, -2.0], step=0.5)
    assert found.theta[0] < 0.5 and found.value_after < found.value_before
    assert np.isfinite(found.value_after)


def test_nan_on_the_way_keeps_the_best() -> None:
    def torn(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return bowl(theta) if theta[0] > 1.5 else (np.nan, np.full(3, np.nan))

    found = run("adam", torn, [4.0, 3.0, -2.0], step=0.5)
    assert found.status == "failed" and np.isfinite(found.value_after)
    assert found.value_after < found.value_before


def test_cmaes_is_repeatable_and_for_poses_only() -> None:
    first, second = (run("cmaes", bowl, [4.0, 3.0, -2.0], seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.theta, second.theta)
    with pytest.raises(InputError, match=r"at most 30 parameters, found 100"):
        OPTIMISERS["cmaes"](Function(lambda t: (0.0, t)), np.zeros(100), Settings())


def test_a_function_without_curvature_says_so() -> None:
    with pytest.raises(TypeError, match="no curvature"):
        OPTIMISERS["levenberg_marquardt"](Function(bowl), np.zeros(3), Settings())
