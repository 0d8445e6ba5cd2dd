"""``histomri register`` as a user runs it: every format in, files out that other programs read, and clear refusals."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import nibabel
import numba
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image as Pillow

from histomri.cli import main
from histomri.core import Grid, Image
from histomri.io.nifti import write_nifti
from histomri.io.omezarr import PyramidSpec, Storage, open_array, write_pyramid
from histomri.io.pyramid import Reading
from histomri.registration.alignment import Alignment
from histomri.transforms import Affine, Chain, DisplacementField

sitk: Any = SimpleITK
SHAPE = (150, 190)
ANGLE, SHIFT = np.radians(25.0), np.array([6.0, -4.0])
POINTS = np.array([[70.0, 60.0], [120.5, 80.25], [95.0, 99.0], [60.0, 90.0]])


def density(points: np.ndarray) -> np.ndarray:
    """Optical density of a section at points (..., 2) in pixels (x, y): a lobed outline, texture of several scales."""
    x, y = points[..., 0] - 95, points[..., 1] - 75
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    inside = radius < 48 + 9 * np.cos(angle - 0.4) + 6 * np.sin(2 * angle) + 4 * np.cos(3 * angle)
    waves = np.random.default_rng(3).normal(size=(18, 2)) * np.repeat([0.12, 0.3, 0.6], 6)[:, None]
    texture = np.cos(np.stack([x, y], -1) @ waves.T + np.arange(18)).sum(axis=-1) / 12
    return np.where(inside, 0.45 + 0.3 * np.clip(texture, -1, 1), 0.0)


def truth(points: np.ndarray) -> np.ndarray:
    """Where a point (x, y) of the fixed image is in the moving one: turned about the middle, and shifted."""
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    middle = np.array([95.0, 75.0])
    return (points - middle) @ np.array([[c, -s], [s, c]]).T + middle + SHIFT


def pixels(moving: bool) -> np.ndarray:
    """(y, x, 3) uint8; the moving image in another stain."""
    grid = np.stack(np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0])), axis=-1).astype(float)
    if moving:
        c, s = np.cos(-ANGLE), np.sin(-ANGLE)
        middle = np.array([95.0, 75.0])
        grid = (grid - SHIFT - middle) @ np.array([[c, -s], [s, c]]).T + middle
    stain = np.array([0.5, 0.9, 0.6]) if not moving else np.array([0.9, 0.8, 0.4])
    return np.rint(235 * 10 ** (-density(grid)[..., None] * stain)).astype(np.uint8)


FIXED, MOVING = pixels(False), pixels(True)


def write(path: Path, data: np.ndarray) -> Path:
    """Write an image of any of the formats; returns what to name at the command line."""
    if path.name.endswith(".nii.gz"):
        volume = data.mean(axis=-1).T[..., None] if data.shape[-1] == 3 else data
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.diag([0.02, 0.02, 0.1, 1])), path)
    elif path.suffix == ".zarr":
        spec = PyramidSpec("s", Grid(data.shape[:2], 0.02), ("red", "green", "blue"), "uint8", 2)
        write_pyramid(path, spec, Reading(lambda y, x, h, w: data[y : y + h, x : x + w]), Storage(64, 64))
    elif path.suffix == ".tif":
        tifffile.imwrite(
            path, data, resolution=(500, 500), resolutionunit="CENTIMETER", photometric="rgb" if data.ndim == 3 else None
        )
    else:
        Pillow.fromarray(data).save(path, quality=95)
    return path


def points_csv(path: Path, points: np.ndarray, header: str = "x,y") -> Path:
    path.write_text(header + "\n" + "".join(",".join(map(str, p)) + "\n" for p in points))
    return path


def read_xy(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([[float(r["x"]), float(r["y"])] for r in csv.DictReader(file)])


def register(fixed: Path, moving: Path, out: Path, *more: Any) -> int:
    return main(["register", str(fixed), str(moving), "--output", str(out), *map(str, more)])


def result(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two PNG files, with points."""
    folder = tmp_path_factory.mktemp("png")
    given = points_csv(folder / "p.csv", POINTS)
    status = register(write(folder / "f.png", FIXED), write(folder / "m.png", MOVING), folder / "out", "--points", given)
    assert status == 0
    return folder / "out"


def test_the_folder_holds_what_is_promised(done: Path) -> None:
    record = result(done)
    assert {p.name for p in done.iterdir()} == {"result.json", "points.csv", *record["files"].values()}
    assert record["status"] in ("converged", "stopped") and record["reason"]
    assert record["metric"]["after"] < record["metric"]["before"] and record["folding"] == 0
    assert record["seconds"] > record["registration_seconds"] > 0
    assert record["peak_memory_mb"] > 10 and record["unit"] == "px"


def test_points_arrive_where_the_truth_says(done: Path) -> None:
    assert np.abs(read_xy(done / "points.csv") - truth(POINTS)).max() < 1.0


def test_itk_maps_points_as_points_csv_says(done: Path) -> None:
    files, mapped = result(done)["files"], read_xy(done / "points.csv")
    forward = sitk.ReadTransform(str(done / files["fixed_to_moving"]))
    np.testing.assert_allclose([forward.TransformPoint(p) for p in POINTS.tolist()], mapped, atol=1e-3)
    backward = sitk.ReadTransform(str(done / files["moving_to_fixed"]))
    np.testing.assert_allclose([backward.TransformPoint(p) for p in mapped.tolist()], POINTS, atol=0.05)


def test_itk_resamples_to_the_registered_image(done: Path, tmp_path: Path) -> None:
    """The transform and the image in the folder say the same, to another program."""
    files = result(done)["files"]
    fixed, moving = (sitk.GetImageFromArray(a[..., 1].astype(np.float32)) for a in (FIXED, MOVING))
    forward = sitk.ReadTransform(str(done / files["fixed_to_moving"]))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, forward, sitk.sitkLinear, 0.0))
    ours = np.asarray(Pillow.open(done / files["registered"]))
    assert ours.shape == FIXED.shape
    inside = density(np.stack(np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0])), axis=-1).astype(float)) > 0
    assert np.abs(theirs - ours[..., 1])[inside].max() <= 1.0


@pytest.mark.parametrize(
    ("fixed", "moving", "registered", "unit"),
    [
        ("f.tif", "m.tif", "registered.tif", "mm"),
        ("f.ome.zarr", "m.tif", "registered.tif", "mm"),
        ("f.tif", "m.ome.zarr", "registered.ome.zarr", "mm"),
        ("f.jpg", "m.tif", "registered.tif", "px"),
        ("f.tif", "m.nii.gz", "registered.tif", "mm"),
    ],
)
def test_formats_mix(tmp_path: Path, fixed: str, moving: str, registered: str, unit: str) -> None:
    paths = write(tmp_path / fixed, FIXED), write(tmp_path / moving, MOVING)
    assert register(*paths, tmp_path / "out", "--points", points_csv(tmp_path / "p.csv", POINTS)) == 0
    record = result(tmp_path / "out")
    assert record["files"]["registered"] == registered and record["unit"] == unit
    assert np.abs(read_xy(tmp_path / "out" / "points.csv") - truth(POINTS)).max() < 1.0
    spacing = 0.02 if unit == "mm" else 1.0
    forward = sitk.ReadTransform(str(tmp_path / "out" / record["files"]["fixed_to_moving"]))
    mapped = np.array([forward.TransformPoint((p * spacing).tolist()) for p in POINTS]) / spacing
    np.testing.assert_allclose(mapped, read_xy(tmp_path / "out" / "points.csv"), atol=1e-3)


def test_a_level_of_a_pyramid_counts_in_its_own_pixels(tmp_path: Path) -> None:
    fixed, moving = write(tmp_path / "f.ome.zarr", FIXED), write(tmp_path / "m.ome.zarr", MOVING)
    given = points_csv(tmp_path / "p.csv", (POINTS - 0.5) / 2)
    assert register(fixed / "1", moving, tmp_path / "out", "--points", given) == 0
    assert np.abs(read_xy(tmp_path / "out" / "points.csv") - truth(POINTS)).max() < 2.0
    written = open_array(tmp_path / "out" / "registered.ome.zarr", "0")
    assert written.shape == (3, SHAPE[0] // 2, SHAPE[1] // 2)


def test_an_earlier_result_does_not_survive_a_failure(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from histomri.registration import sanity

    out = tmp_path / "out"
    out.mkdir()
    for name in ("registered.tif", "fixed_to_moving.h5", "points.csv", "result.json", "mine.txt"):
        (out / name).write_text("old")
    monkeypatch.setattr(sanity, "MIN_OVERLAP", 5.0)
    assert register(write(tmp_path / "f.png", FIXED), write(tmp_path / "m.png", MOVING), out) == 1
    assert {p.name for p in out.iterdir()} == {"result.json", "mine.txt"}
    assert result(out)["status"] == "failed" and "refused" in result(out)["reason"]
    assert "refused" in capsys.readouterr().err


BLANK = np.full((*SHAPE, 3), 240, np.uint8)


def _volume(folder: Path) -> Path:
    return write(folder / "v.nii.gz", np.random.default_rng(0).normal(size=(20, 24, 22)))


@pytest.mark.parametrize(
    ("moving", "more", "says"),
    [
        (lambda d: d / "none.png", [], "no such file"),
        (lambda d: points_csv(d / "x.png", POINTS), [], "x.png"),
        (lambda d: write(d / "blank.png", BLANK), [], "blank.png: is constant"),
        (_volume, [], "2D image cannot be registered with a 3D"),
        (lambda d: write(d / "m.png", MOVING), ["--fixed-mask", lambda d: write(d / "k.png", BLANK[:50])], "190 x 50"),
        (lambda d: write(d / "m.png", MOVING), ["--fixed-mask", lambda d: write(d / "k.png", BLANK * 0)], "its mask is empty"),
        (lambda d: write(d / "m.png", MOVING), ["--points", lambda d: points_csv(d / "p.csv", POINTS, "a,b")], "no column x"),
        (lambda d: write(d / "m.png", MOVING), ["--points", lambda d: d / "absent.csv"], "absent.csv"),
        (
            lambda d: write(d / "m.png", MOVING),
            ["--fixed-landmarks", lambda d: points_csv(d / "l.csv", POINTS)],
            "one image only",
        ),
        (lambda d: d, [], "folder"),
    ],
)
def test_bad_input_is_refused_in_words_and_writes_nothing(
    tmp_path: Path, capsys: Any, moving: Any, more: list[Any], says: str
) -> None:
    options = [m(tmp_path) if callable(m) else m for m in more]
    assert register(write(tmp_path / "f.png", FIXED), moving(tmp_path), tmp_path / "deep" / "out", *options) == 1
    error = capsys.readouterr().err
    assert says in error and "->" in error and "Traceback" not in error
    assert not (tmp_path / "deep").exists()


def test_every_item_of_the_menu_can_be_combined(tmp_path: Path) -> None:
    chosen = [
        "--transform",
        "affine,bspline",
        "--metric",
        "ncc",
        "--regularisation",
        "bending=1,volume=0.1",
        "--optimiser",
        "adam",
    ]
    paths = write(tmp_path / "f.png", FIXED), write(tmp_path / "m.png", MOVING)
    assert register(*paths, tmp_path / "out", *chosen) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["transform"] == ["affine", "bspline"] and record["metric"]["name"] == "ncc"
    assert record["regularisation"] == {"bending": 1.0, "volume": 0.1} and record["optimiser"] == "adam"
    assert record["metric"]["after"] < record["metric"]["before"]


WRONG_VALUES = [
    ["--metric", "best"],
    ["--transform", "afine"],
    ["--regularisation", "bending"],
    ["--regularisation", "stiff=1"],
    ["--optimiser", "newton"],
    ["--threads", "0"],
    ["--device", "tpu"],
]


@pytest.mark.parametrize("wrong", WRONG_VALUES)
def test_an_unknown_option_value_is_a_usage_error_that_names_the_choices(tmp_path: Path, capsys: Any, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        register(tmp_path / "f.png", tmp_path / "m.png", tmp_path / "out", *wrong)
    assert ended.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_landmark_files_of_different_lengths_are_refused(tmp_path: Path, capsys: Any) -> None:
    files = points_csv(tmp_path / "a.csv", POINTS), points_csv(tmp_path / "b.csv", POINTS[:3])
    paths = write(tmp_path / "f.png", FIXED), write(tmp_path / "m.png", MOVING)
    assert register(*paths, tmp_path / "out", "--fixed-landmarks", files[0], "--moving-landmarks", files[1]) == 1
    assert "(4, 2) and (3, 2)" in capsys.readouterr().err


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """What a command does to its process must not reach the tests that follow in this one."""
    with mock.patch.dict(os.environ):
        yield
    for threads, grant in ((numba.config.NUMBA_NUM_THREADS, numba.set_num_threads), (-1, cv2.setNumThreads)):
        grant(threads)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(os.cpu_count() or 1)


def test_progress_is_shown_and_the_result_said_in_a_line(tmp_path: Path, capsys: Any, threads_as_before: None) -> None:
    register(write(tmp_path / "f.png", FIXED), write(tmp_path / "m.png", MOVING), tmp_path / "out", "--threads", "1")
    said = capsys.readouterr()
    assert "%" in said.err and said.out.count("\n") == 1 and "converged" in said.out


def _turned_volume() -> tuple[Grid, Grid, Chain]:
    """A fixed and a moving grid in LPS mm, one of them oblique, and a map between their worlds with a deformation."""
    fixed = Grid((18, 20, 22), 0.5, np.array([-5.0, -4.0, -6.0]))
    turn = np.linalg.qr(np.array([[1.0, 0.1, 0.0], [-0.1, 1.0, 0.2], [0.0, -0.2, 1.0]]))[0]
    direction = turn @ np.diag([-1.0, 1.0, 1.0])
    moving = Grid((21, 19, 24), 0.5, turn @ fixed.centre_mm - direction @ np.array([5.0, 4.5, 5.75]), direction)
    nodes = Grid((8, 9, 9), 1.5, fixed.origin_mm - 0.5)
    bend = DisplacementField(nodes, 0.2 * np.sin(nodes.points()[..., ::-1]))
    return fixed, moving, Chain((bend, Affine.from_parts(turn, [0.3, -0.2, 0.4])))


def test_volumes_count_in_ras_millimetres_and_itk_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and points only: the pipeline is set to find the truth."""
    fixed, moving, chain = _turned_volume()
    found = Alignment(chain, "converged", "as told", "nmi", -0.1, -0.3)
    monkeypatch.setattr("histomri.registration.volumetric.register_volumes", lambda *_: found)
    random = np.random.default_rng(6)
    for name, grid in (("f", fixed), ("m", moving)):
        write_nifti(tmp_path / f"{name}.nii.gz", Image(grid, random.normal(100, 20, grid.shape).astype(np.float32)))
    points = random.uniform(-2, 2, (9, 3))
    given = points_csv(tmp_path / "p.csv", points * [-1, -1, 1], "x,y,z")
    out = tmp_path / "out"
    assert register(tmp_path / "f.nii.gz", tmp_path / "m.nii.gz", out, "--points", given) == 0
    with (out / "points.csv").open(newline="") as file:
        mapped = np.array([[float(r[k]) for k in "xyz"] for r in csv.DictReader(file)]) * [-1, -1, 1]
    np.testing.assert_allclose(mapped[:, ::-1], chain.map(points[:, ::-1]), atol=2e-6)
    files = result(out)["files"]
    forward, backward = (sitk.ReadTransform(str(out / files[k])) for k in ("fixed_to_moving", "moving_to_fixed"))
    np.testing.assert_allclose([forward.TransformPoint(p) for p in points.tolist()], mapped, atol=2e-6)
    np.testing.assert_allclose([backward.TransformPoint(p) for p in mapped.tolist()], points, atol=0.02)
    images = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in "fm"]
    theirs = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], forward, sitk.sitkLinear, 0.0))
    ours = sitk.ReadImage(str(out / files["registered"]))
    np.testing.assert_allclose(sitk.GetArrayFromImage(ours), theirs, atol=1e-2)
    np.testing.assert_allclose(ours.GetOrigin(), images[0].GetOrigin(), atol=1e-5)
