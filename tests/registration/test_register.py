"""The one function for two images: what it accepts, what it refuses, and that its answer means what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import Tissue, rigid

from histomri.core import Grid, Image, InputError, RegistrationError
from histomri.registration import choices, sanity, views, warp
from histomri.registration.alignment import View
from histomri.registration.register import Registration, register
from histomri.transforms import Affine, Chain, DisplacementField

TISSUE = Tissue(2)
SHAPE = (150, 170)
TURN = rigid(37.0, False, (0.4, -0.3))


def brightfield(to_tissue: np.ndarray | None = None, shape: tuple[int, int] = SHAPE, spacing: float = 0.085) -> Image:
    """The tissue in colour, dark on a light background, (y, x, 3) uint8."""
    grid = Grid(shape, spacing, -np.asarray(shape) / 2 * spacing)
    density = TISSUE.image(grid, to_tissue)[0].data
    pixels = 240 * 10 ** (-density[..., None] * np.array([0.25, 0.4, 0.3]))
    return Image(grid, np.rint(pixels).astype(np.uint8), ("red", "green", "blue"))


@pytest.fixture(scope="module")
def turned() -> Registration:
    return register(brightfield(), brightfield(np.linalg.inv(TURN)))


def _error_mm(result: Registration, truth: np.ndarray) -> float:
    """Median distance in mm over the tissue."""
    grid = result.fixed.grid
    points = grid.to_world(np.argwhere(TISSUE.inside(grid.points())))
    expected = points @ truth[:2, :2].T + truth[:2, 2]
    return float(np.median(np.linalg.norm(result.map(points) - expected, axis=1)))


def test_a_turned_section_is_found(turned: Registration) -> None:
    assert turned.is_trusted and turned.reason
    assert turned.after < turned.before
    assert turned.folding == 0
    assert _error_mm(turned, TURN) < 0.085


def test_there_and_back_is_where_it_was(turned: Registration) -> None:
    points = np.random.default_rng(0).uniform(-4, 4, (50, 2))
    np.testing.assert_allclose(turned.inverse().map(turned.map(points)), points, atol=1e-3)


def test_the_registered_image_lies_on_the_fixed_grid_and_looks_like_it(turned: Registration) -> None:
    picture = turned.registered()
    assert picture.grid == turned.fixed.grid and picture.data.dtype == np.uint8 and picture.channels == ("red", "green", "blue")
    inside = TISSUE.inside(picture.grid.points())
    off = np.abs(picture.data[inside].astype(float) - turned.fixed.data[inside])
    assert np.median(off) < 8 < np.median(np.abs(turned.moving.data[inside].astype(float) - turned.fixed.data[inside]))


def test_labels_keep_their_values(turned: Registration) -> None:
    labels = turned.moving.with_data((np.indices(SHAPE).sum(axis=0) % 5 * 50).astype(np.int16))
    out = turned.registered(labels, nearest=True).data
    assert out.dtype == np.int16 and set(np.unique(out)) <= {0, 50, 100, 150, 200}


def test_arrays_count_in_pixels() -> None:
    fixed, moving = brightfield().data, brightfield(np.linalg.inv(TURN)).data
    result = register(fixed, moving)
    centre = (np.asarray(SHAPE)) / 2
    expected = (TURN[:2, :2] @ np.array([1.7, -0.85]) + TURN[:2, 2]) / 0.085 + centre
    np.testing.assert_allclose(result.map(centre + np.array([20.0, -10.0])), expected, atol=1.0)


def test_a_scan_finds_a_thumbnail_four_times_smaller() -> None:
    fixed = brightfield(shape=(450, 510), spacing=0.085 / 3)
    moving = brightfield(np.linalg.inv(TURN), shape=(112, 128), spacing=0.085 * 4 / 3)
    result = register(fixed.data, moving.data)
    centre = np.array([225.0, 255.0])
    expected = (TURN[:2, :2] @ np.array([1.7, -0.85]) + TURN[:2, 2]) / (0.085 * 4 / 3) + np.array([56.0, 64.0])
    assert result.is_trusted
    np.testing.assert_allclose(result.map(centre + np.array([60.0, -30.0])), expected, atol=1.0)


def _refused(match: str, *images: Any, **more: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        register(*images, **more)
    assert all(p.remedy for p in caught.value.problems)


GREY = np.full((60, 70), 200, np.uint8)
NOISE = np.random.default_rng(1).integers(0, 255, (60, 70)).astype(np.uint8)
VOLUME = np.random.default_rng(1).normal(size=(12, 14, 16))


@pytest.mark.parametrize(
    ("fixed", "moving", "says"),
    [
        (GREY, NOISE, "fixed: is constant: every pixel is 200"),
        (NOISE, np.zeros((60, 70, 3), np.uint8), "moving: is constant"),
        (np.full((60, 70), np.nan), NOISE, "fixed: holds no finite pixel"),
        (NOISE, VOLUME, "2D image cannot be registered with a 3D"),
        (NOISE, NOISE[:4], "moving: is too small"),
        (NOISE, NOISE[0], "an array .* was expected, found \\(70,\\)"),
    ],
)
def test_what_no_registration_can_use_is_an_error(fixed: np.ndarray, moving: np.ndarray, says: str) -> None:
    _refused(says, fixed, moving)


def test_spacings_that_differ_by_a_thousand_are_an_error() -> None:
    small = brightfield()
    large = Image(Grid(small.grid.shape, small.grid.spacing_mm * 1000), small.data, small.channels)
    _refused("spacings.*ignore-spacing", small, large)
    uneven = Image(Grid(small.grid.shape, small.grid.spacing_mm * np.array([1, 1000])), small.data, small.channels)
    _refused("spacings", small, uneven)


@pytest.mark.parametrize("share", [0.0, 0.001])
def test_an_empty_mask_is_an_error(share: float) -> None:
    mask = np.zeros(SHAPE, bool)
    mask.flat[: int(share * mask.size)] = True
    _refused("moving: its mask is empty", brightfield(), brightfield(), moving_mask=mask)


def test_a_mask_of_another_size_is_an_error() -> None:
    _refused(
        "mask of fixed: 170 x 150 pixels were expected.*found 150 x 170",
        brightfield(),
        brightfield(),
        fixed_mask=np.ones(SHAPE[::-1]),
    )


def test_an_image_that_is_constant_inside_its_mask_is_an_error() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:15, :15] = True
    _refused("constant inside its mask", brightfield(), brightfield(), fixed_mask=mask)


def test_nan_pixels_are_masked_out_and_said() -> None:
    image = brightfield()
    holed = image.with_data(image.data.astype(np.float32), image.channels)
    holed.data[60:70, 60:75] = np.nan
    view, notes = views.make_view(holed, None, "scan.tif")
    assert not view.mask.data[60:70, 60:75].any() and view.mask.data.any()
    assert np.isfinite(view.image.data).all()
    assert "scan.tif: 0.59% of the pixels are not finite" in notes[0]


POINTS = np.random.default_rng(2).uniform(-3, 3, (6, 2))


@pytest.mark.parametrize(
    ("fixed", "moving", "says"),
    [
        (POINTS, None, "one image only"),
        (POINTS, POINTS[:4], r"found \(6, 2\) and \(4, 2\)"),
        (POINTS[:2], POINTS[:2], "at least 3 points"),
        (np.outer(np.arange(5.0), [1, 2]), POINTS[:5], "on a line"),
        (np.zeros((5, 3)), np.zeros((5, 3)), r"\(n, 2\)"),
    ],
)
def test_landmarks_that_do_not_match_are_an_error(fixed: np.ndarray, moving: np.ndarray | None, says: str) -> None:
    _refused(says, brightfield(), brightfield(), fixed_landmarks=fixed, moving_landmarks=moving)


def _landmarks(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return POINTS, POINTS @ truth[:2, :2].T + truth[:2, 2]


def test_landmarks_lead_where_no_search_goes() -> None:
    """A tenth of the size, on the other face: only the landmarks say so."""
    truth = rigid(200.0, True, (0.02, 0.01))
    truth[:2, :2] *= 0.1
    moving = brightfield(np.linalg.inv(truth), spacing=0.0085)
    fixed_points, moving_points = _landmarks(truth)
    wrong = moving_points + np.random.default_rng(4).normal(size=moving_points.shape) * 0.02
    result = register(brightfield(), moving, fixed_landmarks=fixed_points, moving_landmarks=wrong)
    assert result.is_trusted
    assert _error_mm(result, truth) < 0.017 < np.median(np.linalg.norm(wrong - moving_points, axis=1))
    assert result.landmark_error is not None and result.landmark_error[1] < 0.05 < result.landmark_error[0]


def test_landmarks_that_contradict_the_images_are_said() -> None:
    here, there = _landmarks(np.eye(3))
    grid = brightfield().grid
    assert sanity.landmarks_missed(Affine.identity(2), (here, there), grid) == ""
    assert "contradict" in sanity.landmarks_missed(Affine(rigid(0, shift=(2.0, 0.0))), (here, there), grid)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"transforms": ["afine"]}, "affine"),
        ({"metric": "mutual"}, "nmi"),
        ({"device": "tpu"}, "cpu"),
        ({"regularisation": {"stiffness": 1.0}}, "bending"),
        ({"optimiser": "newton"}, "lbfgs"),
        ({"transforms": []}, "affine"),
    ],
)
def test_an_unknown_choice_names_the_choices(option: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        register(brightfield(), brightfield(), **option)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histomri.backend.has_gpu", lambda: False)
    _refused("gpu was asked for", brightfield(), brightfield(), device="gpu")


def test_a_gpu_that_the_default_pipeline_does_not_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histomri.backend.has_gpu", lambda: True)
    assert any("computed on the CPU" in note for note in register(brightfield(), brightfield(), device="gpu").notes)
    assert not any("computed on the CPU" in note for note in register(brightfield(), brightfield(), device="auto").notes)


def test_the_choices_are_the_menus_of_the_engine() -> None:
    from histomri.registration import engine, metrics
    from histomri.registration.engine import optimisers, regularisation

    assert set(choices.TRANSFORMS) == set(engine.TRANSFORMS)
    assert set(choices.METRICS) == set(metrics.METRICS)
    assert set(choices.REGULARISERS) == set(regularisation.TERMS)
    assert set(choices.OPTIMISERS) == set(optimisers.OPTIMISERS)


@pytest.mark.parametrize(
    ("model", "linear"), [("translation", np.eye(2)), ("rigid", rigid(30)[:2, :2]), ("similarity", 1.25 * rigid(30)[:2, :2])]
)
def test_a_start_is_brought_to_what_the_model_can_be(model: str, linear: np.ndarray) -> None:
    start = Affine.from_parts(rigid(30)[:2, :2] @ np.diag([1.4, 1.1]), [3.0, -2.0])
    mask = _masks()[0]
    found = choices.nearest(start, model, mask)
    np.testing.assert_allclose(found.linear, linear, atol=1e-12)
    np.testing.assert_allclose(found.map(mask.grid.centre_mm), start.map(mask.grid.centre_mm))
    assert choices.nearest(start, "affine", mask) is start


def _masks(shape: tuple[int, ...] = (40, 50)) -> tuple[Image, Image]:
    mask = Image(Grid(shape, 1.0), np.ones(shape, bool))  # type: ignore[arg-type]
    return mask, mask


@pytest.mark.parametrize(
    ("linear", "shift", "says"),
    [
        (np.eye(2) * 5, 0, "scales by 5"),
        (np.eye(2) / 5, 0, "scales by 0.2"),
        (np.array([[1, 1.5], [0, 1]]), 0, "shears"),
        (np.diag([1.6, 0.6]), 0, "stretches"),
        (np.eye(2), 200, "only 0%"),
        (np.array([[0.8, -0.6], [0.6, 0.8]]), 5, ""),
        (np.diag([1.0, -1.0]), np.array([0.0, 49.0]), ""),
    ],
)
def test_an_affine_beyond_the_limits_is_refused(linear: np.ndarray, shift: Any, says: str) -> None:
    why = sanity.refusal(Affine.from_parts(linear, np.zeros(2) + shift), *_masks())
    assert says in why and bool(why) == bool(says)


def _field(values: np.ndarray) -> Chain:
    return Chain((DisplacementField(Grid((40, 50), 1.0), values), Affine.identity(2)))  # type: ignore[arg-type]


def test_a_deformation_beyond_the_limits_is_refused() -> None:
    smooth = np.zeros((40, 50, 2))
    smooth[..., 0] = 2 * np.sin(np.arange(50) / 6)
    assert sanity.refusal(_field(smooth), *_masks()) == ""
    assert sanity.folded_share(_field(smooth), _masks()[0]) == 0
    assert "displaces" in sanity.refusal(_field(smooth + 30), *_masks())
    folded = smooth.copy()
    folded[..., 1] = 8 * np.sin(np.arange(50) / 2)
    assert "folds in" in sanity.refusal(_field(folded), *_masks())
    assert "finite" in sanity.refusal(_field(np.where(smooth > 1, np.nan, smooth)), *_masks())


def test_folding_is_the_share_of_the_mask_whatever_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    field = np.random.default_rng(3).normal(size=(40, 50, 2)) * 0.6
    mask = Image(Grid((40, 50), 1.0), np.ones((40, 50), bool))  # type: ignore[arg-type]
    truth = float((_field(field).steps[0].jacobian_determinant() <= 0).mean())  # type: ignore[attr-defined]
    assert truth > 0.02
    for slab in (1, 7, 64):
        monkeypatch.setattr(sanity, "SLAB", slab)
        assert sanity.folded_share(_field(field), mask) == pytest.approx(truth)


def test_images_that_have_nothing_in_common_fail() -> None:
    points = brightfield().grid.points()
    lobes = np.hypot(*np.moveaxis(points, -1, 0)) < 3.5 + 0.8 * np.cos(5 * np.arctan2(points[..., 0], points[..., 1]))
    density = np.where(lobes, 0.4 + 0.15 * Tissue(2, seed=11).texture(points * 1.3), 0)
    result = register(brightfield().data, np.rint(240 * 10**-density).astype(np.uint8))
    assert result.status == "failed" and "resemble" in result.reason


def test_a_failed_registration_resamples_nothing(turned: Registration) -> None:
    from dataclasses import replace

    with pytest.raises(RegistrationError, match="too far"):
        replace(turned, status="failed", reason="too far").registered()


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_identity_warp_returns_the_image_bit_for_bit(ndim: int) -> None:
    data = np.random.default_rng(0).integers(0, 60000, (13, 21, 17)[:ndim]).astype(np.uint16)
    image = Image(Grid(data.shape, 0.3), data)  # type: ignore[arg-type]
    np.testing.assert_array_equal(warp.warped(image, Affine.identity(ndim), image.grid), data)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_warp_does_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch, nearest: bool) -> None:
    image = brightfield()
    wave = np.stack([np.sin(np.indices((30, 30))[0] / 3), np.cos(np.indices((30, 30))[1] / 4)], axis=-1) * 0.2
    chain = Chain((DisplacementField(Grid((30, 30), 0.45, image.grid.origin_mm), wave), Affine(rigid(20))))  # type: ignore[arg-type]
    whole = warp.warped(image, chain, image.grid, nearest)
    monkeypatch.setattr(warp, "TILE_PX", 37)
    tiles = warp.warped(image, chain, image.grid, nearest)
    assert np.mean(whole != tiles) < (0.002 if nearest else 0.02)
    assert np.abs(whole.astype(int) - tiles).max() <= 1 or nearest


def test_a_large_image_is_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        shape, dtype, ndim, read = (1000, 200), np.dtype(np.uint8), 2, 0

        def __getitem__(self, key: slice) -> np.ndarray:
            rows = np.arange(*key.indices(1000))
            Rows.read = max(Rows.read, len(rows))
            return ((rows[:, None] // 10 + np.arange(200) // 10) % 200).astype(np.uint8)

    monkeypatch.setattr(views, "STRIP_BYTES", 40_000)
    small, valid = views._reduced(Image(Grid((1000, 200), 1.0), Rows()), 100)  # type: ignore[arg-type]
    assert small.grid.shape == (100, 20) and valid.all() and Rows.read <= 50
    np.testing.assert_array_equal(small.data[..., 0], (np.arange(100)[:, None] + np.arange(20)) % 200)
    np.testing.assert_allclose(small.grid.origin_mm, [4.5, 4.5])


@pytest.mark.parametrize("inverted", [False, True])
def test_tissue_is_bright_on_nothing_whatever_the_slide(inverted: bool) -> None:
    image = brightfield()
    pixels = 255 - image.data if inverted else image.data
    view, notes = views.make_view(image.with_data(pixels, image.channels), None, "a")
    inside = TISSUE.inside(image.grid.points())
    assert not notes
    assert view.image.data[~inside].max() < 0.02 < np.median(view.image.data[inside])
    assert np.mean(view.mask.data ^ inside) < 0.05


def test_an_mri_that_fills_its_slice_is_bright_on_dark() -> None:
    image = TISSUE.image(brightfield().grid)[0]
    box = Image(Grid((100, 116), 0.085), image.data[26:126, 26:142] * 700)  # type: ignore[arg-type]
    inside = box.data > 0
    assert inside.mean() > 0.5
    view, notes = views.make_view(box, None, "mri")
    assert not notes and np.mean(view.mask.data ^ inside) < 0.08
    assert view.image.data[~inside].max() < 0.05 < np.median(view.image.data[inside])


def test_an_image_without_background_is_used_whole_and_said() -> None:
    texture = np.random.default_rng(5).integers(60, 200, (80, 90)).astype(np.uint8)
    view, notes = views.make_view(Image(Grid((80, 90), 1.0), texture), None, "a")  # type: ignore[arg-type]
    assert view.mask.data.mean() > 0.9
    assert isinstance(view, View) and (view.mask.data.all() == bool(notes))


GRID = Grid((160, 180), 1.0)
RADII = np.hypot(*(GRID.points() - 80).transpose(2, 0, 1)) / 50
TEXTURE = np.random.default_rng(0).uniform(0.3, 1.0, GRID.shape)


def _seen(pixels: np.ndarray) -> View:
    return views.make_view(Image(GRID, pixels.astype(np.uint8)), None, "a")[0]


def test_an_extracted_brain_ends_where_its_background_begins() -> None:
    pixels = np.where((RADII < 1) & (RADII > 0.1), 1 + 200 * TEXTURE, 0)
    view = _seen(pixels)
    assert view.extracted
    np.testing.assert_array_equal(view.mask.data, RADII < 1)


@pytest.mark.parametrize(
    "pixels",
    [
        np.maximum(220 * np.exp(-2 * RADII**2) * TEXTURE - 15, 0),
        np.where(RADII < 0.5, 200 * TEXTURE, np.where(RADII < 1.2, 246 + 4 * TEXTURE, 255)),
        np.where(RADII < 0.5, 200 * TEXTURE, np.where(RADII < 1.2, 236 + 4 * TEXTURE, 0)),
        np.where((RADII < 1) | (np.random.default_rng(1).random(GRID.shape) > 0.95), 1 + 200 * TEXTURE, 0),
        np.where(abs(GRID.points() - 80).max(axis=-1) < 60, 250 * TEXTURE, 0),
    ],
    ids=["dark cut to 0", "white around glass", "black around glass", "dust on black", "padded picture"],
)
def test_other_even_backgrounds_are_no_outlines(pixels: np.ndarray) -> None:
    assert not _seen(pixels).extracted


def test_a_mask_that_was_given_stays() -> None:
    pixels = np.where(RADII < 1, 1 + 200 * TEXTURE, 0).astype(np.uint8)
    view, _ = views.make_view(Image(GRID, pixels), Image(GRID, (RADII < 0.5).astype(np.uint8)), "a")
    assert not view.extracted
    np.testing.assert_array_equal(view.mask.data, RADII < 0.5)
