"""Pyramids: exact levels in exact places, one writer per shard, little memory, and metadata that others accept."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05 import Image as OmeImage
from ome_zarr_models.v05 import ImageLabel

from histomri.core import Grid
from histomri.io import omezarr
from histomri.io.publish import content_sha256
from histomri.io.pyramid import Reading

SMALL = omezarr.Storage(chunk_px=32, shard_px=64)


def write(folder: Path, pixels: Any, storage: omezarr.Storage = SMALL, threads: int = 1, smallest: int = 20) -> int:
    """Write pixels (y, x, c) as a pyramid; returns the number of levels."""
    levels = omezarr.level_count(pixels.shape[:2], smallest)
    channels = tuple(f"channel_{i}" for i in range(pixels.shape[2]))
    spec = omezarr.PyramidSpec("a", Grid(pixels.shape[:2], np.array([0.01, 0.02])), channels, str(pixels.dtype), levels)
    reading = Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w], threads=threads)
    omezarr.write_pyramid(folder, spec, reading, storage)
    return levels


def averaged(pixels: Any) -> Any:
    """2 x 2 area average in float64, a ragged edge repeated."""
    ragged = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
    return ragged.reshape(ragged.shape[0] // 2, 2, ragged.shape[1] // 2, 2, -1).mean((1, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (64, 64), (65, 127), (201, 333), (128, 257)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_level_is_the_rounded_average_of_unrounded_levels(tmp_path: Path, shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(1)
    pixels = (rng.random((*shape, 2)) * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(dtype)
    levels = write(tmp_path / "a", pixels)
    expected = pixels.astype(float)
    for level in range(levels):
        found = omezarr.ChannelsLast(omezarr.open_array(tmp_path / "a", str(level)))[...]
        exact = expected if dtype == "float32" else np.rint(expected)
        # float32 sums may round a half to the other side; never more than one step
        assert found.shape == expected.shape
        assert np.abs(found - exact).max() <= (1e-6 if dtype == "float32" else 1)
        assert np.abs(found - expected).max() <= (1e-6 if dtype == "float32" else 0.51)
        expected = averaged(expected)


@pytest.mark.parametrize("shape", [(256, 320), (255, 319), (257, 321), (251, 333)])
def test_a_landmark_stays_where_it_is_at_every_level(tmp_path: Path, shape: tuple[int, int]) -> None:
    grid = Grid(shape, np.array([0.01, 0.02]))
    y, x = np.mgrid[: shape[0], : shape[1]]
    blob = np.exp(-((y - 130.3) ** 2 + (x - 170.8) ** 2) / (2 * 20.0**2)).astype(np.float32)
    write(tmp_path / "a", blob[..., None])
    group = zarr.open_group(str(tmp_path / "a"), mode="r")
    for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]:  # type: ignore[index, call-overload]
        scale, translation = (np.array(t[t["type"]]) for t in dataset["coordinateTransformations"])
        data = omezarr.open_array(tmp_path / "a", dataset["path"])[0]
        index = np.array([(data * n).sum() / data.sum() for n in np.mgrid[: data.shape[0], : data.shape[1]]])
        world = translation[1:] + scale[1:] * index
        assert np.abs(world - grid.to_world([130.3, 170.8])).max() < 0.01 * 0.01


@pytest.mark.parametrize("codec", omezarr.CODECS)
def test_result_does_not_depend_on_threads(tmp_path: Path, codec: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 40, (333, 517, 3), dtype=np.uint8)
    storage = omezarr.Storage(32, 64, codec)
    for threads in (1, 2, 7):
        write(tmp_path / str(threads), pixels, storage, threads)
    assert len({content_sha256(tmp_path / str(threads)) for threads in (1, 2, 7)}) == 1


def test_what_is_held_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    """Each tile is read once, whole shards at a time, and never more of them at once than threads."""
    boxes, at_once, peak, lock = [], 0, 0, threading.Lock()

    def read(y: int, x: int, h: int, w: int) -> Any:
        nonlocal at_once, peak
        with lock:
            at_once += 1
            peak = max(peak, at_once)
            boxes.append((y, x, h, w))
        tile = np.zeros((h, w, 1), np.uint8)
        with lock:
            at_once -= 1
        return tile

    spec = omezarr.PyramidSpec("a", Grid((1000, 700), 0.01 * np.ones(2)), ("a",), "uint8", 6)
    omezarr.write_pyramid(tmp_path / "a", spec, Reading(read, SMALL.shard_px, threads=2), SMALL)
    assert peak <= 2
    assert max(h * w for _, _, h, w in boxes) <= SMALL.shard_px**2
    assert sum(h * w for _, _, h, w in boxes) == 700_000
    assert len({(y, x) for y, x, _, _ in boxes}) == len(boxes) == 16 * 11
    assert all(y % SMALL.shard_px == 0 and x % SMALL.shard_px == 0 for y, x, _, _ in boxes)


def test_a_reader_that_fails_fails_the_whole_pyramid(tmp_path: Path) -> None:
    def read(y: int, x: int, h: int, w: int) -> Any:
        if y > 200:
            raise OSError("no more")
        return np.zeros((h, w, 1), np.uint8)

    spec = omezarr.PyramidSpec("a", Grid((400, 400), np.ones(2)), ("a",), "uint8", 3)
    with pytest.raises(OSError, match="no more"):
        omezarr.write_pyramid(tmp_path / "a", spec, Reading(read, threads=2), SMALL)


def test_other_implementations_accept_image_and_label(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (150, 90, 3), dtype=np.uint8)
    levels = write(tmp_path / "a", pixels)
    grid = Grid((75, 45), np.array([0.02, 0.04]), np.array([0.005, 0.01]))
    masks, grids = omezarr.mask_pyramid(pixels[::2, ::2, 0] > 99, grid, levels)
    omezarr.write_label(tmp_path / "a", "tissue", masks, grids, SMALL)
    image = OmeImage.from_zarr(zarr.open_group(str(tmp_path / "a"), mode="r"))
    label = ImageLabel.from_zarr(zarr.open_group(str(tmp_path / "a" / "labels" / "tissue"), mode="r"))
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "y", "x"]
    assert [axis.unit for axis in label.ome_attributes.multiscales[0].axes] == ["millimeter"] * 2


def test_levels_open_although_snakemake_left_its_mark(tmp_path: Path) -> None:
    pixels = np.arange(100 * 100 * 3, dtype=np.uint16).reshape(100, 100, 3)
    write(tmp_path / "a", pixels)
    (tmp_path / "a" / ".snakemake_timestamp").touch()
    view = omezarr.ChannelsLast(omezarr.open_array(tmp_path / "a", "0"))
    assert np.array_equal(view[...], pixels)
    assert np.array_equal(view[10:20, 30], pixels[10:20, 30])
    assert np.array_equal(view[..., 1], pixels[..., 1])
    assert np.array_equal(np.asarray(view), pixels)


def test_shards_that_do_not_hold_whole_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        omezarr.Storage(chunk_px=512, shard_px=1000)
    with pytest.raises(ValueError, match="codec"):
        omezarr.Storage(codec="lzma")
