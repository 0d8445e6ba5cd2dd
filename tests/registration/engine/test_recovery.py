"""Known transforms are found again: every metric with every model, 2D and 3D, contrast inverted where that must not matter."""

from __future__ import annotations

import sys
from pathlib import Path

import numba
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenes import BLIND, bent_scene, centred, linear_scene

from histomri.core import Image, InputError
from histomri.registration.engine import TERMS, Fit, Options, fit
from histomri.registration.engine.multilevel import guarded
from histomri.registration.engine.pyramid import Source
from histomri.registration.metrics import METRICS
from histomri.transforms import Affine

LEVELS = {2: (2, 1), 3: (1,)}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", ["translation", "rigid", "similarity", "affine"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_finds_every_linear_transform(metric: str, model: str, ndim: int) -> None:
    scene = linear_scene(model, ndim, inverted=metric in BLIND)
    found = fit(scene.fixed, scene.moving, (model,), metric, levels=LEVELS[ndim])
    assert scene.error_px() > 1.0
    assert scene.error_px(found) < {"mind": 0.1, "ngf": 0.08}.get(metric, 0.05), found.reason
    assert found.status == "converged" and found.value_after < found.value_before
    assert found.field is None and isinstance(found.transform, Affine)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_finds_a_deformation_that_does_not_fold(metric: str, ndim: int) -> None:
    scene = bent_scene(ndim, inverted=metric in BLIND)
    found = fit(scene.fixed, scene.moving, ("diffeomorphic",), metric, levels=LEVELS[ndim])
    # what is left is mostly the border and the window
    share = 0.4 if metric in ("mind", "ngf") else 0.3
    assert scene.error_px(found) < share * scene.error_px(), found.reason
    assert found.least_jacobian > 0 and found.status in ("converged", "stopped")


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("model", "metric"), [("bspline", "ssd"), ("bspline", "nmi"), ("velocity", "ncc"), ("velocity", "mi")])
def test_other_deformable_models(model: str, metric: str, ndim: int) -> None:
    scene = bent_scene(ndim, inverted=metric in BLIND)
    found = fit(scene.fixed, scene.moving, (model,), metric, levels=LEVELS[ndim])
    assert scene.error_px(found) < 0.3 * scene.error_px(), found.reason
    assert found.least_jacobian > 0


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam", "gradient_descent", "cmaes"])
def test_every_optimiser_with_a_pose(optimiser: str) -> None:
    scene = linear_scene("rigid", 2, inverted=True)
    found = fit(scene.fixed, scene.moving, ("rigid",), "nmi", optimiser=optimiser, levels=(2,))
    assert scene.error_px(found) < 0.2, found.reason


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam", "gradient_descent", "gauss_newton"])
def test_every_optimiser_with_a_deformation(optimiser: str) -> None:
    scene = bent_scene(2)
    found = fit(scene.fixed, scene.moving, ("diffeomorphic",), "ssd", optimiser=optimiser, levels=(2, 1))
    assert scene.error_px(found) < 0.3 * scene.error_px(), found.reason
    assert found.least_jacobian > 0


@pytest.mark.parametrize("term", TERMS)
def test_every_regulariser_stiffens_a_deformation(term: str) -> None:
    """Under a heavy weight the field is calmer than without."""
    scene = bent_scene(2, pixels=2.5)
    loose, stiff = (
        fit(scene.fixed, scene.moving, ("bspline",), "ncc", regularisation={term: alpha}, levels=(1,)) for alpha in (0.0, 30.0)
    )
    assert loose.field is not None and stiff.field is not None
    costs = [TERMS[term](f.field.values / f.field.grid.spacing_mm, np.ones(2))[0] for f in (loose, stiff) if f.field]
    assert costs[1] < 0.5 * costs[0]


def test_transforms_follow_one_another() -> None:
    scene = bent_scene(2, inverted=True, pixels=2.0)
    found = fit(scene.fixed, scene.moving, ("rigid", "affine", "bspline", "diffeomorphic"), "mind", levels=(2, 1))
    done = [(s.transform, s.factor) for s in found.steps]
    # linear models see the finest level twice, since MIND depends on the pose
    linear, bent = (
        [(m, f) for m in ("rigid", "affine") for f in (2, 1, 1)],
        [(m, f) for m in ("bspline", "diffeomorphic") for f in (2, 1)],
    )
    assert done == linear + bent
    assert scene.error_px(found) < 0.4 * scene.error_px()
    back = found.transform.inverse().map(found.transform.map([[1.0, -2.0]]))
    np.testing.assert_allclose(back, [[1.0, -2.0]], atol=1e-3)


def test_masks_keep_what_is_wrong_out() -> None:
    """A bright block in either image that the other has not."""
    scene = linear_scene("translation", 2)
    fixed, moving = scene.fixed.data.copy(), scene.moving.data.copy()
    masks = [np.ones(a.shape, bool) for a in (fixed, moving)]
    fixed[10:28, 30:48], masks[0][10:28, 30:48] = 8.0, False
    moving[40:58, 12:30], masks[1][40:58, 12:30] = np.nan, False
    images = [Image(s.grid, d) for s, d in ((scene.fixed, fixed), (scene.moving, moving))]
    inside = [Image(s.grid, m) for s, m in zip((scene.fixed, scene.moving), masks, strict=True)]
    for metric in ("ssd", "ncc"):
        assert scene.error_px(fit(*images, ("translation",), metric, *inside, levels=(1,))) < 0.1
    whole = [images[0], Image(scene.moving.grid, scene.moving.data)]
    assert scene.error_px(fit(*whole, ("translation",), "ssd", levels=(1,))) > 0.1, "the block must matter"


def test_the_best_of_several_starts_wins_by_a_margin() -> None:
    scene = linear_scene("rigid", 2)
    starts = []
    for angle in np.radians([180, 120, 60, 0, -60]):
        start = np.eye(3)
        start[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        starts.append(start)
    found = fit(scene.fixed, scene.moving, ("rigid",), "ncc", initial=starts, levels=(2, 1))
    assert scene.error_px(found) < 0.1
    assert found.margin > 0.1
    alone = fit(scene.fixed, scene.moving, ("rigid",), "ncc", initial=starts[3], levels=(2, 1))
    assert np.isnan(alone.margin)
    np.testing.assert_allclose(alone.matrix, found.matrix, atol=0.02)


def test_landmarks_lead_where_the_images_say_little() -> None:
    """Stripes know nothing of shifts along them: the landmarks do, softly, and a spline of them starts a deformation."""
    scene = linear_scene("translation", 2)
    stripes = [
        Image(g, np.cos(g.points()[..., 0] - s).astype(np.float32))
        for g, s in ((scene.fixed.grid, 0.0), (scene.moving.grid, 0.2))
    ]
    points = np.random.default_rng(0).uniform(-4, 4, (9, 2))
    moved = points + np.array([0.2, 0.9])
    for metric in ("ssd", "ncc"):
        found = fit(*stripes, ("translation",), metric, landmarks=(points, moved), initial=np.eye(3), levels=(1,))
        np.testing.assert_allclose(found.matrix[:2, 2], [0.2, 0.9], atol=0.03)
    start = fit(*stripes, ("translation",), "ssd", initial=np.eye(3), levels=(1,))
    assert abs(start.matrix[1, 2]) < 0.3


def test_a_landmark_spline_and_soft_landmarks_bend() -> None:
    scene = bent_scene(2, pixels=2.0)
    points = np.random.default_rng(0).uniform(-4.5, 4.5, (40, 2))
    pairs = (points, scene.truth(points))
    splined = fit(scene.fixed, scene.moving, ("landmark_spline",), "ncc", landmarks=pairs)
    assert scene.error_px(splined) < 0.3 * scene.error_px() and splined.least_jacobian > 0
    soft = fit(scene.fixed, scene.moving, ("diffeomorphic",), "ncc", landmarks=pairs, options=Options(landmark_weight=1.0))
    assert scene.error_px(soft) < 0.3 * scene.error_px()


def test_a_fit_goes_on_where_another_ended() -> None:
    scene = bent_scene(2)
    first = fit(scene.fixed, scene.moving, ("diffeomorphic",), "ssd", levels=(2,))
    second = fit(scene.fixed, scene.moving, ("diffeomorphic",), "ssd", initial=first, levels=(1,))
    assert second.steps[0].outcome.value_before < 0.5 * first.value_before
    assert scene.error_px(second) < scene.error_px(first)
    with pytest.raises(InputError, match="cannot follow a deformation"):
        fit(scene.fixed, scene.moving, ("affine",), "ssd", initial=first)


def test_a_start_that_is_right_stays_and_is_no_failure() -> None:
    scene = linear_scene("rigid", 2)
    right = fit(scene.fixed, scene.moving, ("rigid",), "mind", levels=LEVELS[2])
    again = fit(scene.fixed, scene.moving, ("rigid",), "mind", initial=right, levels=(4, 2, 1))
    assert again.status == "converged" and again.value_after <= again.value_before
    assert scene.error_px(again) < 1.2 * scene.error_px(right) + 0.02


def test_thin_parts_of_a_mask_are_guarded_at_coarse_levels() -> None:
    mask = np.zeros((20, 21), bool)
    mask[:, 9] = True
    grid = centred(21, 0.5, 2).crop((0, 0), (20, 21))
    kept = guarded(Source(grid, np.zeros((20, 21, 1), np.float32), mask), grid.downsample(4))
    assert kept.tolist() == [[False, True, True, True, False, False]] * 5


def test_more_threads_change_no_bit(two_threads: None) -> None:
    def found(threads: int) -> list[Fit]:
        numba.set_num_threads(threads)
        line, bend = linear_scene("affine", 2, True), bent_scene(3, True)
        short = Options(iterations=(5,))
        made = [fit(line.fixed, line.moving, ("affine",), m, levels=(1,), options=short) for m in ("mind", "nmi")]
        for model, metric in (("diffeomorphic", "lncc"), ("velocity", "cr"), ("bspline", "ngf"), ("diffeomorphic", "mind")):
            made.append(fit(bend.fixed, bend.moving, (model,), metric, levels=(1,), options=short))
        return made

    for one, two in zip(found(1), found(2), strict=True):
        np.testing.assert_array_equal(one.matrix, two.matrix)
        if one.field is not None and two.field is not None:
            np.testing.assert_array_equal(one.field.values, two.field.values)


@pytest.fixture
def two_threads() -> object:
    """At least two threads of numba, whose number is put back afterwards."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba has one thread only")
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)
