"""Optimisers that share one signature and say how they ended: ``optimise(problem, theta, settings) -> Outcome``.

A problem gives ``at(theta) -> (value, gradient)``; ``advance(theta, step)`` applies a step (``theta + step`` on flat problems, a
composition for diffeomorphisms) and ``reach(step)`` is its length in the problem's own unit (pixels, for images). A value that is
not finite is a place where nobody may go.

All of them end as ``converged`` when the best value of the last ``window`` iterations fell by less than ``tolerance`` of its
whole fall; as ``stopped`` when the count or the time ran out while it was still falling; as ``failed`` when the values are not
finite or run away, with the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from histomri.backend import beside, to_device
from histomri.core.errors import InputError
from histomri.core.errors import Problem as InputProblem

Float = NDArray[np.float64]
Theta = NDArray[Any]
Evaluation = tuple[float, Theta]
POSE_LIMIT = 30
# how many times the whole fall a value may rise above the first one before the optimiser counts as gone astray
RATE_CUTS = 5
RUNAWAYS = 2
RUNAWAY = 1000.0
HALVINGS = 8


class Problem(Protocol):
    """What an optimiser needs to know of what it minimises."""

    def at(self, theta: Theta) -> Evaluation:
        """Value and gradient by a step from ``theta``, of the same shape as the step."""

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """Where a step leads."""

    def reach(self, step: Theta) -> float:
        """How far a step goes, in the unit of ``Settings.step``; linear in the step."""

    def chart(self) -> Problem:
        """The same problem with steps that add up, for methods that remember earlier gradients."""

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """Where a step of the chart leads, without a check."""

    @property
    def flat(self) -> bool:
        """Whether steps add up without a check, so that no restart from where they lead is needed."""


@dataclass(frozen=True)
class Settings:
    """When to end and how far to step.

    ``step``: reach of the first step; ``tolerance``: relative fall over ``window`` iterations; ``seconds``: time limit, without
    one the result never depends on the machine; ``seed``: of methods that draw.
    """

    iterations: int = 100
    tolerance: float = 1e-3
    window: int = 5
    step: float = 1.0
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Outcome:
    """``status`` is converged, stopped or failed, for ``reason``; ``theta`` is the best that was seen, at ``value_after``."""

    status: str
    reason: str
    theta: Theta
    value_before: float
    value_after: float
    trace: tuple[float, ...] = ()


@dataclass(frozen=True)
class Function:
    """A flat problem from a function ``f(theta) -> (value, gradient)``, and ``f(theta) -> (value, gradient, curvature)``."""

    function: Callable[[Theta], Evaluation]
    normal: Callable[[Theta], tuple[float, Float, Float]] | None = None
    flat: bool = True

    def at(self, theta: Theta) -> Evaluation:
        """The function."""
        return self.function(theta)

    def terms(self, theta: Theta) -> tuple[float, Float, Float]:
        """Value, gradient and curvature."""
        if self.normal is None:
            raise TypeError("This function has no curvature: use another optimiser than Levenberg-Marquardt.")
        return self.normal(theta)

    def advance(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step

    def reach(self, step: Theta) -> float:
        """The largest entry."""
        return float(np.abs(step).max())

    def chart(self) -> Problem:
        """Itself."""
        return self

    def shift(self, theta: Theta, step: Theta) -> Theta:
        """The sum."""
        return theta + step


@dataclass
class _Watch:
    """Keeps the best, the trace, and the word on when to end."""

    settings: Settings
    theta: Theta
    before: float
    best: float = field(init=False)
    trace: list[float] = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.best = self.before
        self.trace = [self.before]
        self.began = time.monotonic()

    def see(self, theta: Theta, value: float) -> None:
        self.trace.append(value)
        if value < self.best:
            self.theta, self.best = theta, value

    @property
    def fall(self) -> float:
        """The whole fall so far, at least a hundredth of the first value, so that noise about the optimum is not a fall."""
        return max(self.before - self.best, 1e-2 * abs(self.before), 1e-12)

    def settled(self) -> bool:
        window = self.settings.window
        if len(self.trace) <= window:
            return False
        return min(self.trace[:-window]) - self.best < self.settings.tolerance * self.fall

    def astray(self) -> bool:
        """Far above the first value, or no number at all."""
        return not self.trace[-1] <= self.before + RUNAWAY * self.fall

    def late(self) -> bool:
        return self.settings.seconds is not None and time.monotonic() - self.began > self.settings.seconds

    def end(self, status: str, reason: str) -> Outcome:
        return Outcome(status, reason, self.theta, self.before, self.best, tuple(self.trace))

    def ended(self) -> Outcome | None:
        """What is to be said after an iteration, None to go on."""
        if self.astray():
            return self.end("failed", f"the values ran away, from {self.before:.6g} to {self.trace[-1]:.6g}")
        if self.settled():
            return self.end("converged", f"{self.settings.window} iterations brought less than {self.settings.tolerance:g}")
        return self.out_of_time() if self.late() else None

    def out_of_time(self) -> Outcome:
        if self.late():
            return self.end("stopped", f"the time of {self.settings.seconds:g} s ran out while the value was falling")
        return self.end("stopped", f"the {self.settings.iterations} iterations ran out while the value was falling")

    def no_start(self) -> Outcome:
        return self.end("failed", "the value or its gradient at the start is not finite")


def _usable(value: float, gradient: Theta) -> bool:
    return bool(np.isfinite(value) and np.isfinite(gradient).all())


def gradient_descent(problem: Problem, theta: Theta, settings: Settings) -> Outcome:
    """Steps along the negative gradient of at most ``step``, halved until the value falls, and longer again after success."""
    value, gradient = problem.at(theta)
    watch, length = _Watch(settings, theta, value), settings.step
    if not _usable(value, gradient):
        return watch.no_start()
    for _ in range(settings.iterations):
        found = _lower(problem, (theta, value, gradient), length)
        if found is None:
            return watch.end("converged", "no step along the gradient lowers the value any more")
        theta, value, gradient, length = found
        if not np.isfinite(gradient).all():
            return watch.end("failed", "the gradient is not finite")
        watch.see(theta, value)
        if outcome := watch.ended():
            return outcome
        length = min(1.5 * length, settings.step)
    return watch.out_of_time()


def _lower(problem: Problem, here: tuple[Theta, float, Theta], length: float) -> tuple[Theta, float, Theta, float] | None:
    theta, value, gradient = here
    reach = problem.reach(gradient)
    if not reach > 0:
        return None
    for _ in range(HALVINGS):
        trial = problem.advance(theta, gradient * (-length / reach))
        found, slope = problem.at(trial)
        if found < value:
            return trial, found, slope, length
        length /= 2
    return None


def gauss_newton(problem: Any, theta: Theta, settings: Settings) -> Outcome:
    """Windowed Gauss-Newton updates, ``problem.newton(theta) -> (value, update)``, halved until the value falls."""
    value, update = problem.newton(theta)
    watch = _Watch(settings, theta, value)
    if not _usable(value, update):
        return watch.no_start()
    for _ in range(settings.iterations):
        found = _updated(problem, theta, value, update)
        if found is None:
            return watch.end("converged", "no part of the update lowers the value any more")
        theta, value, update = found
        watch.see(theta, value)
        if outcome := watch.ended():
            return outcome
    return watch.out_of_time()


def _updated(problem: Any, theta: Theta, value: float, update: Theta) -> tuple[Theta, float, Theta] | None:
    for _ in range(4):
        trial = problem.take(theta, update)
        found, following = problem.newton(trial)
        if found < value:
            return trial, found, following
        update = update * np.float32(0.5)
    return None


def adam(problem: Problem, theta: Theta, settings: Settings) -> Outcome:
    """Adam (Kingma and Ba, 2015). The rate makes the first step reach ``step``; it is halved, from the best, on a plateau, and
    quartered where the values ran away.
    """
    value, gradient = problem.at(theta)
    watch = _Watch(settings, theta, value)
    if not _usable(value, gradient):
        return watch.no_start()
    moments = _Moments.zero(gradient)
    if not problem.reach(moments.step(gradient)) > 0:
        return watch.end("converged", "the gradient is zero")
    rate, since, cuts, losses = settings.step / problem.reach(moments.step(gradient)), 0, 0, 0
    moments = _Moments.zero(gradient)
    for _ in range(settings.iterations):
        theta = problem.advance(theta, -rate * moments.step(gradient))
        value, gradient = problem.at(theta)
        since = 0 if value < watch.best - settings.tolerance * watch.fall else since + 1
        watch.see(theta, value)
        lost = watch.astray() or not _usable(value, gradient)
        losses += lost
        if losses > RUNAWAYS:
            return watch.end("failed", f"the values ran away, from {watch.before:.6g} to {value:.6g}")
        if watch.late():
            break
        if lost or since >= settings.window:
            if cuts == RATE_CUTS:
                return watch.end("converged", "smaller rates bring nothing more")
            # near the bottom a first step of ``step`` is far too long: what ran away is tried again with a quarter of it
            theta, rate, since, cuts = watch.theta, rate / (4 if lost else 2), 0, cuts + 1
            value, gradient = problem.at(theta)
            moments = _Moments.zero(gradient)
    return watch.out_of_time()


@dataclass
class _Moments:
    """Running means of the gradient and of its square."""

    first: Theta
    second: Theta
    count: int = 0

    @staticmethod
    def zero(like: Theta) -> _Moments:
        return _Moments(np.zeros_like(like), np.zeros_like(like))

    def step(self, gradient: Theta) -> Theta:
        """``m / sqrt(v)`` with both means freed of their start at zero."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.99 * self.second + 0.01 * gradient**2
        mean = self.first / (1 - 0.9**self.count)
        spread = np.sqrt(self.second / (1 - 0.99**self.count))
        # relative to the largest, so that entries which hardly matter do not walk on rounding noise
        return mean / (spread + 1e-3 * float(spread.max()) + 1e-30)


def lbfgs(problem: Problem, theta: Theta, settings: Settings) -> Outcome:
    """L-BFGS-B of scipy (Byrd et al. 1995), in rounds of ten where steps must be checked before they are taken for good."""
    chart = problem.chart()
    value, gradient = chart.at(theta)
    watch = _Watch(settings, theta, value)
    if not _usable(value, gradient):
        return watch.no_start()
    length = settings.iterations if chart.flat else 10
    while (left := settings.iterations + 1 - len(watch.trace)) > 0:
        before = watch.best
        ended = _Round(chart, watch).run(min(length, left))
        if watch.late():
            break
        if chart.flat and ended:
            return watch.end("converged", ended)
        if before - watch.best < settings.tolerance * watch.fall:
            return watch.end("converged", "another round brings nothing more")
    return watch.out_of_time()


class _Round:
    """One run of scipy's L-BFGS-B from the best so far, in a unit that makes its first step reach ``step``."""

    def __init__(self, chart: Problem, watch: _Watch):
        self.chart, self.watch, self.theta, self.start = chart, watch, watch.theta, watch.best
        self.value, self.gradient = chart.at(watch.theta)
        size = float(np.sqrt((self.gradient.astype(np.float64) ** 2).sum()))
        reach = chart.reach(self.gradient / size) if size > 0 else 0.0
        self.unit = watch.settings.step / reach if reach > 0 else 0.0
        # scipy may end on a point that its line search has just refused
        self.lowest, self.best = np.zeros(self.gradient.size), self.start

    def run(self, iterations: int) -> str:
        """Why it ended, empty when only the count did; the watch keeps what was found."""
        if not self.unit:
            return "the gradient is zero"
        ftol = 0.1 * self.watch.settings.tolerance * self.watch.fall / max(abs(self.start), 1e-12)
        options = {"maxiter": iterations, "maxls": 20, "ftol": ftol, "gtol": 0.0}
        x = np.zeros(self.gradient.size)
        done = minimize(self._evaluate, x, jac=True, method="L-BFGS-B", callback=self._passed, options=options)
        theta = self.chart.advance(self.theta, self._step(self.lowest))
        value = self.best if self.chart.flat else self.chart.at(theta)[0]
        if value < self.watch.best:
            self.watch.theta, self.watch.best = theta, value
        return "" if done.status == 1 else "the value no longer falls along any direction that L-BFGS tries"

    def _step(self, x: Float) -> Theta:
        return beside((self.unit * x).reshape(self.gradient.shape).astype(self.gradient.dtype), self.gradient)  # type: ignore[no-any-return]

    def _evaluate(self, x: Float) -> tuple[float, Float]:
        value, slope = self.chart.at(self.chart.shift(self.theta, self._step(x)))
        if not _usable(value, slope):
            # a wall that the line search walks back from
            return self.start + abs(self.start) + float(x @ x), 2 * x
        if value < self.best:
            self.lowest, self.best = x.copy(), value
        return value, self.unit * to_device(slope, "cpu").ravel().astype(np.float64)

    def _passed(self, intermediate_result: Any) -> None:
        self.watch.trace.append(float(intermediate_result.fun))
        if self.watch.late():
            raise StopIteration


def levenberg_marquardt(problem: Any, theta: Theta, settings: Settings) -> Outcome:
    """Gauss-Newton damped until the value falls (Marquardt, 1963), on ``problem.terms(theta) -> (value, gradient, curvature)``.

    With ``J = sum r^2``, gradient and curvature are ``J^T r`` and ``J^T J``: both halved.
    """
    terms = problem.terms(theta)
    watch, damping = _Watch(settings, theta, terms[0]), 1e-3
    if not _usable(terms[0], terms[1]):
        return watch.no_start()
    for _ in range(settings.iterations):
        found = _damped(problem, theta, terms, damping)
        if found is None:
            return watch.end("converged", "no damped step lowers the value any more")
        fall = terms[0] - found[1][0]
        theta, terms, damping = found[0], found[1], found[2] / 3
        watch.see(theta, terms[0])
        if fall < 1e-2 * settings.tolerance * max(terms[0] + fall, 1e-12):
            return watch.end("converged", f"the last step brought less than {1e-2 * settings.tolerance:g} of the value")
        if watch.late():
            break
    return watch.out_of_time()


Terms = tuple[float, Float, Float]


def _damped(problem: Any, theta: Theta, terms: Terms, damping: float) -> tuple[Theta, Terms, float] | None:
    """The first step that lowers the value, damped ever more, and its damping; None after eight that do not."""
    value, gradient, curvature = terms
    for _ in range(HALVINGS):
        scale = np.diag(curvature).copy()
        scale[scale <= 0] = max(float(scale.max(initial=0.0)), 1e-12)
        step = -np.asarray(np.linalg.solve(curvature + np.diag(damping * scale), gradient), np.float64)
        trial = problem.advance(theta, step)
        found = problem.terms(trial)
        if found[0] < value:
            return trial, found, damping
        damping *= 4
    return None


def cmaes(problem: Problem, theta: Theta, settings: Settings) -> Outcome:
    """CMA-ES (Hansen 2016; package ``cmaes``), without derivatives, for a pose; ``iterations`` counts generations.

    Every coordinate is scaled so that one unit reaches ``step``. Raises ``InputError`` for more than ``POSE_LIMIT`` parameters.
    """
    if theta.size > POSE_LIMIT:
        found = f"CMA-ES is for at most {POSE_LIMIT} parameters, found {theta.size}"
        raise InputError(InputProblem("optimiser", found, "use lbfgs or gradient_descent for deformations"))
    value, _ = problem.at(theta)
    watch = _Watch(settings, theta, value)
    if not np.isfinite(value):
        return watch.no_start()
    unit = settings.step / np.maximum([problem.reach(e) for e in np.eye(theta.size)], 1e-12)
    from cmaes import CMA  # type: ignore[import-untyped]

    search = CMA(mean=np.zeros(theta.size), sigma=1.0, seed=settings.seed)
    for _ in range(settings.iterations):
        _generation(problem, search, watch, (theta, unit))
        if search.should_stop() or _narrow(search, watch):
            return watch.end("converged", "the generations no longer differ")
        if watch.late():
            break
    return watch.out_of_time()


def _generation(problem: Problem, search: Any, watch: _Watch, frame: tuple[Theta, Float]) -> None:
    theta, unit = frame
    told = []
    for _ in range(search.population_size):
        x = search.ask()
        trial = problem.advance(theta, unit * x)
        value = problem.at(trial)[0]
        if value < watch.best:
            watch.theta, watch.best = trial, value
        told.append((x, value if np.isfinite(value) else 1e6 * (1 + abs(watch.before))))
    search.tell(told)
    watch.trace.append(min(v for _, v in told))


def _narrow(search: Any, watch: _Watch) -> bool:
    """Whether several generations in a row have brought next to nothing."""
    window = 2 * watch.settings.window
    if len(watch.trace) <= window:
        return False
    recent = watch.trace[-window:]
    return max(recent) - min(recent) < 0.1 * watch.settings.tolerance * watch.fall


Optimiser = Callable[[Any, Theta, Settings], Outcome]
OPTIMISERS: dict[str, Optimiser] = {
    "gauss_newton": gauss_newton,
    "levenberg_marquardt": levenberg_marquardt,
    "lbfgs": lbfgs,
    "adam": adam,
    "gradient_descent": gradient_descent,
    "cmaes": cmaes,
}
