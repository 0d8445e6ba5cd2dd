"""What cannot be fitted is said in words, and no transform comes out that only looks right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scenes import bent_scene, centred, linear_scene

from histomri.core import Grid, Image, InputError, RegistrationError
from histomri.registration.engine import Options, fit
from histomri.registration.engine.checks import from_landmarks, refused, source
from histomri.transforms import DisplacementField

SCENE = linear_scene("rigid", 2)
FIXED, MOVING = SCENE.fixed, SCENE.moving


def with_data(image: Image, data: np.ndarray) -> Image:
    return Image(image.grid, data.astype(np.float32))


def test_pixels_that_are_not_finite() -> None:
    data = FIXED.data.copy()
    data[3:5, 7] = np.nan
    data[9, 9] = np.inf
    with pytest.raises(InputError, match=r"the fixed image: 3 pixels .* NaN or infinite -> leave them out by a mask"):
        fit(with_data(FIXED, data), MOVING, ("rigid",), "ssd")
    with pytest.raises(InputError, match="the moving image: 3 pixels"):
        fit(MOVING, with_data(FIXED, data), ("rigid",), "ssd")


def test_constant_images_and_empty_masks() -> None:
    flat = with_data(FIXED, np.full(FIXED.grid.shape, 3.0))
    with pytest.raises(InputError, match="the fixed image: is constant where it is to be used: 3"):
        fit(flat, MOVING)
    with pytest.raises(InputError, match="the moving image: is constant"):
        fit(FIXED, with_data(MOVING, np.zeros(MOVING.grid.shape)))
    empty = Image(MOVING.grid, np.zeros(MOVING.grid.shape, bool))
    with pytest.raises(InputError, match="the moving image: its mask is empty: 0 pixels are set, at least 16"):
        fit(FIXED, MOVING, moving_mask=empty)
    corner = np.zeros(FIXED.grid.shape, bool)
    corner[:9, :9] = True
    patchy = FIXED.data.copy()
    patchy[:9, :9] = 1.0
    with pytest.raises(InputError, match="the fixed image: is constant"):
        fit(with_data(FIXED, patchy), MOVING, fixed_mask=Image(FIXED.grid, corner))


def test_no_overlap() -> None:
    away = np.eye(3)
    away[0, 2] = 100.0
    with pytest.raises(RegistrationError, match=r"only 0.0% of the smaller image meets the other at the start"):
        fit(FIXED, MOVING, ("rigid",), "nmi", initial=away)
    back = fit(
        FIXED,
        Image(Grid(MOVING.grid.shape, MOVING.grid.spacing_mm, MOVING.grid.origin_mm + 60), MOVING.data),
        ("rigid",),
        "ncc",
        initial="centres",
        levels=(2, 1),
    )
    np.testing.assert_allclose(back.transform.map([[0.0, 0.0]]) - 60, SCENE.truth(np.zeros((1, 2))), atol=0.05)


def test_images_that_do_not_go_together() -> None:
    volume = bent_scene(3).fixed
    with pytest.raises(InputError, match="a 2D image cannot be fitted to a 3D one"):
        fit(FIXED, volume)
    with pytest.raises(InputError, match="spacings differ by a factor of 1e"):
        fit(FIXED, Image(centred(20, 200.0, 2), np.random.default_rng(0).random((20, 20)).astype(np.float32)))
    with pytest.raises(InputError, match="at least 4 along each axis"):
        fit(Image(Grid((3, 40), 1.0), np.random.default_rng(0).random((3, 40))), FIXED)
    with pytest.raises(InputError, match="make the mask on the image's grid"):
        fit(FIXED, MOVING, fixed_mask=Image(MOVING.grid, np.ones(MOVING.grid.shape, bool)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"transforms": ("rigid", "elastic")}, "there is no 'elastic' -> choose from translation"),
        ({"transforms": ()}, "transforms: there is no"),
        ({"transforms": ("diffeomorphic", "affine")}, "affine cannot follow a deformation"),
        ({"transforms": ("landmark_spline",)}, "needs landmarks"),
        ({"metric": "mse"}, "metric: there is no 'mse'"),
        ({"optimiser": "newton"}, "optimiser: there is no 'newton'"),
        (
            {"metric": "nmi", "transforms": ("rigid",), "optimiser": "levenberg_marquardt"},
            "needs a linear transform",
        ),
        ({"transforms": ("diffeomorphic",), "optimiser": "cmaes"}, "at most 30 parameters"),
        ({"regularisation": {"stiff": 1.0}}, "regularisation: there is no 'stiff'"),
        ({"regularisation": {"bending": -1.0}}, "give a number of at least 0"),
        ({"initial": np.eye(4)}, "a finite 3 x 3 matrix"),
        ({"landmarks": (np.zeros((4, 2)), np.zeros((3, 2)))}, "each row must be the same point"),
        ({"landmarks": (np.zeros((4, 2)), np.full((4, 2), np.nan))}, "not finite"),
    ],
)
def test_choices_that_do_not_exist_or_do_not_fit(more: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(FIXED, MOVING, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("linear", "said"), [(np.eye(2) * 40, "scales by 40"), (np.diag([1.0, 3.0]), "stretches"), (np.zeros((2, 2)), "singular")]
)
def test_a_start_beyond_the_limits_is_refused(linear: np.ndarray, said: str) -> None:
    start = np.eye(3)
    start[:2, :2] = linear
    with pytest.raises(RegistrationError, match=said):
        fit(FIXED, MOVING, ("rigid",), "ssd", initial=start)


def test_a_result_beyond_the_limits_is_refused() -> None:
    fixed = source(FIXED, None, "")
    far = DisplacementField(FIXED.grid, np.full((*FIXED.grid.shape, 2), 6.0))
    assert "displaces by" in refused(np.eye(3), far, np.eye(3), fixed)
    assert "scales" in refused(np.diag([4.0, 4.0, 1.0]), None, np.eye(3), fixed)
    assert "scales" not in refused(np.diag([4.0, 4.0, 1.0]), None, np.diag([3.5, 3.5, 1.0]), fixed)
    assert "not finite" in refused(np.full((3, 3), np.nan), None, np.eye(3), fixed)


def test_a_runaway_scale_is_held_by_its_bounds() -> None:
    """Noise on noise: an affine would shrink the moving image into a flat patch."""
    random = np.random.default_rng(5)
    noise = [Image(centred(40, 0.2, 2), random.normal(size=(40, 40)).astype(np.float32)) for _ in range(2)]
    for metric in ("ssd", "ncc", "mi"):
        found = fit(*noise, ("affine",), metric, levels=(2, 1), options=Options(iterations=(20,)))
        scales = np.linalg.svd(found.matrix[:2, :2], compute_uv=False)
        assert (0.5 <= np.sqrt(scales.prod()) <= 2 and scales[0] <= 2 * scales[1]) or found.status == "failed"


def test_out_of_iterations_is_stopped() -> None:
    found = fit(FIXED, MOVING, ("rigid",), "ncc", levels=(1,), options=Options(iterations=(2,)))
    assert found.status == "stopped" and "rigid at 1/1" in found.reason and found.value_after < found.value_before


def test_progress_runs_from_0_to_1() -> None:
    seen: list[tuple[float, str]] = []
    fit(FIXED, MOVING, ("rigid", "affine"), "ssd", levels=(2, 1), progress=lambda share, doing: seen.append((share, doing)))
    shares = [s for s, _ in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert seen[0][1] == "rigid, 1/2"


def test_a_start_from_landmarks() -> None:
    fixed = np.random.default_rng(2).normal(size=(8, 2))
    angle = 2.0
    turn = 1.3 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = from_landmarks(fixed, fixed @ turn.T + [3, 4])
    np.testing.assert_allclose(matrix, [[*turn[0], 3], [*turn[1], 4], [0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(from_landmarks(fixed[:1], fixed[:1] + 2), [[1, 0, 2], [0, 1, 2], [0, 0, 1]], atol=1e-9)
