"""``histomri transfer`` must put every label where the transforms say."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

sys.path.insert(0, str(Path(__file__).parent))
from study import SHAPE, make_study, ras_of

from histomri.cli import main
from histomri.cli import transfer as command
from histomri.core import Grid, Image
from histomri.io.nifti import write_nifti
from histomri.kernels.plane import lattice_points, sample_plane

TURNED = np.array([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1], [0.0, -0.1, 0.95]])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def _labels(path: Path, dtype: type = np.uint16, top: int = 900) -> Image:
    """A volume of 0.3 mm around section ``a``, not aligned with the MRI, cut so that part of the section lies outside."""
    centre = (ras_of(np.array([[300.0, 170.0]]))[0] * [-1, -1, 1])[::-1]
    grid = Grid((24, 20, 22), 0.3)
    grid = Grid(grid.shape, grid.spacing_mm, centre - TURNED @ (np.array(grid.shape) * 0.15), TURNED)
    image = Image(grid, np.random.default_rng(8).integers(1, top, grid.shape).astype(dtype))
    write_nifti(path, image)
    return image


def _transfer(config: Path, labels: Path, out: Path, *more: str) -> int:
    return main(["transfer", "--config", str(config), "--to", "section:a", str(labels), "--output", str(out), *more])


def _truth(image: Image, level: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The label at every 7th pixel of a level, and whether it is safely away from the border of its voxel."""
    shape = [-(-n // 2**level) for n in SHAPE]
    y, x = np.meshgrid(*(np.arange(0, n, 7) for n in shape), indexing="ij")
    pixels = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * 2**level - 0.5
    index = image.grid.to_index((ras_of(pixels) * [-1, -1, 1])[:, ::-1])
    nearest = np.floor(index + 0.5).astype(int)
    safe = (np.abs(index - nearest) < 0.49).all(-1)
    inside = ((nearest >= 0) & (nearest < image.grid.shape)).all(-1)
    values = np.where(inside, image.data[tuple(np.clip(nearest, 0, np.array(image.grid.shape) - 1).T)], 0)
    return values.reshape(y.shape), safe.reshape(y.shape)


@pytest.mark.parametrize(("name", "level"), [("o.png", 0), ("o.tif", 1), ("o.png", 2)])
def test_every_pixel_gets_the_label_where_it_lies(config: Path, tmp_path: Path, name: str, level: int) -> None:
    image = _labels(tmp_path / "l.nii.gz")
    assert _transfer(config, tmp_path / "l.nii.gz", tmp_path / name, "--level", str(level)) == 0
    out = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
    assert out.shape == tuple(-(-n // 2**level) for n in SHAPE)
    assert out.dtype == np.uint16
    expected, safe = _truth(image, level)
    assert 0.02 < (expected == 0).mean() < 0.9
    np.testing.assert_array_equal(out[::7, ::7][safe], expected[safe])


def test_tiles_do_not_show(config: Path, tmp_path: Path, monkeypatch) -> None:
    _labels(tmp_path / "l.nii.gz", np.uint8, 250)
    _transfer(config, tmp_path / "l.nii.gz", tmp_path / "whole.png")
    monkeypatch.setattr(command, "TILE_PX", 512)
    _transfer(config, tmp_path / "l.nii.gz", tmp_path / "tiled.png")
    _transfer(config, tmp_path / "l.nii.gz", tmp_path / "tiled.tif")
    whole, tiled = (cv2.imread(str(tmp_path / n), cv2.IMREAD_UNCHANGED) for n in ("whole.png", "tiled.png"))
    assert whole.dtype == np.uint8
    assert (whole != tiled).mean() < 1e-3  # the lattice may put a border a hundredth of a voxel elsewhere
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "tiled.tif"), tiled)


def test_labels_stored_as_float_stay_whole_and_negative_ones_need_a_tiff(config: Path, tmp_path: Path, capsys) -> None:
    image = _labels(tmp_path / "l.nii.gz", np.float32)
    assert _transfer(config, tmp_path / "l.nii.gz", tmp_path / "o.png") == 0
    write_nifti(tmp_path / "n.nii.gz", image.with_data(-image.data.astype(np.int32) * 100))
    assert _transfer(config, tmp_path / "n.nii.gz", tmp_path / "n.png") != 0
    assert "write a .tif" in capsys.readouterr().err
    assert _transfer(config, tmp_path / "n.nii.gz", tmp_path / "n.tif") == 0
    png, tif = cv2.imread(str(tmp_path / "o.png"), cv2.IMREAD_UNCHANGED), tifffile.imread(tmp_path / "n.tif")
    np.testing.assert_array_equal(png.astype(np.int64) * -100, tif)


def test_linear_gives_intensities_between_voxels(config: Path, tmp_path: Path) -> None:
    grid = _labels(tmp_path / "l.nii.gz").grid
    ramp = grid.points()[..., 0].astype(np.float32)
    write_nifti(tmp_path / "r.nii.gz", Image(grid, ramp))
    assert _transfer(config, tmp_path / "r.nii.gz", tmp_path / "r.tif", "--interpolation", "linear") == 0
    out = tifffile.imread(tmp_path / "r.tif")
    pixel = np.array([[450.0, 300.0], [500.0, 200.0]])
    np.testing.assert_allclose(out[[300, 200], [450, 500]], ras_of(pixel)[:, 2], atol=2e-3)


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--level", "9"], "levels 0 to 2"), (["--to", "section:lost"], "was not placed"), (["--to", "mri"], "not a section")],
)
def test_what_cannot_be_done_is_said(config: Path, tmp_path: Path, capsys, more: list[str], says: str) -> None:
    _labels(tmp_path / "l.nii.gz")
    assert _transfer(config, tmp_path / "l.nii.gz", tmp_path / "o.png", *more) != 0
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("shape", [(1, 1), (9, 17), (16, 8)])
def test_the_kernel_is_its_formula(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    volume = random.random((6, 7, 8))
    nodes = [-(-n // 4) + 2 for n in shape]
    lattice = random.uniform(-2, 9, (*nodes, 3))
    index = np.floor(lattice_points(lattice, 4, shape) + 0.5).astype(int)
    inside = ((index >= 0) & (index < volume.shape)).all(-1)
    expected = np.where(inside, volume[tuple(np.moveaxis(np.clip(index, 0, np.array(volume.shape) - 1), -1, 0))], 0)
    np.testing.assert_array_equal(sample_plane(volume, lattice, 4, shape), expected)
