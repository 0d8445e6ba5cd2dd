"""Gaussians and metrics over ragged tiles against the whole; the arrays in memory, in zarr, in dask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from histomri.kernels.gaussian import gaussian as gaussian_of_whole
from histomri.kernels.similarity.passes import evaluated
from histomri.registration.metrics import METRICS, Information, LocalCorrelation, Metric
from histomri.tiling.boxes import boxes, fitting, grown, size_of
from histomri.tiling.similarity import evaluate
from histomri.tiling.smooth import gaussian

Array = NDArray[np.float32]
VARIED: dict[str, Metric] = {
    **{name: metric for name, metric in METRICS.items() if name != "mind"},
    "lncc wide": LocalCorrelation(radius=4, floor=1e-2),
    "nmi cubic": replace(Information("nmi"), window="cubic", bins=24),
}
each_metric = pytest.mark.parametrize("name", VARIED)
TILES: dict[tuple[int, ...], list[tuple[int, ...]]] = {
    (47, 61): [(47, 61), (16, 16), (3, 40), (1, 1), (46, 60)],
    (13, 18, 31): [(13, 18, 31), (5, 7, 9), (1, 18, 4)],
}


def case(shape: tuple[int, ...], channels: int = 1) -> tuple[Array, Array, Array]:
    """Related images between 0 and 1 and a weight with holes."""
    random = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(random.normal(size=(2, *shape, channels)), [0] + [1.2] * len(shape) + [0])
    fixed = 0.5 + 0.2 * noise[0] / noise[0].std()
    warped = 0.8 * fixed + 0.06 * noise[1] / noise[1].std()
    weight = np.where(random.random(shape) < 0.05, 0, random.uniform(0.2, 1, shape))
    return fixed.astype(np.float32), warped.astype(np.float32), weight.astype(np.float32)


@each_metric
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_tiles_of_a_metric_are_the_whole(name: str, shape: tuple[int, ...]) -> None:
    metric, images = VARIED[name], case(shape)
    value, force = metric.evaluate(*images)
    for tile in TILES[shape] if len(boxes(shape, TILES[shape][-1])) < 3000 else TILES[shape][:-1]:
        found, slope = evaluate(metric.passes, *images, tile)
        assert found == pytest.approx(value, rel=1e-6, abs=1e-7), tile
        np.testing.assert_allclose(slope, force, atol=1e-5 * np.abs(force).max(), err_msg=str(tile))


@each_metric
def test_tiles_of_channels_are_the_whole(name: str) -> None:
    metric, images = VARIED[name], case((30, 41), channels=3)
    value, force = metric.evaluate(*images)
    found, slope = evaluate(metric.passes, *images, (11, 12))
    assert found == pytest.approx(value, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(slope, force, atol=1e-5 * np.abs(force).max())


@each_metric
def test_one_part_is_the_metric_itself(name: str) -> None:
    metric, images = VARIED[name], case((30, 41))
    (value, force), (found, slope) = metric.evaluate(*images), evaluated(metric.passes, *images)
    assert found == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(slope, force, rtol=1e-6)


@each_metric
def test_parts_without_weight_say_what_the_whole_says(name: str) -> None:
    metric, (fixed, warped, weight) = VARIED[name], case((30, 41))
    # what is 0 but for rounding is held against the forces of images that vary
    scale = np.abs(metric.evaluate(fixed, warped, weight)[1]).max()
    for images in ((fixed, warped, 0 * weight), (fixed, np.full_like(warped, 0.4), weight)):
        value, force = metric.evaluate(*images)
        found, slope = evaluate(metric.passes, *images, (11, 12))
        assert found == pytest.approx(value, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(slope, force, atol=1e-5 * scale)


@pytest.mark.parametrize("kept", ["zarr", "dask"])
@pytest.mark.parametrize("name", ["lncc", "nmi"])
def test_metrics_read_chunked_arrays(name: str, kept: str, tmp_path: Path) -> None:
    images = case((47, 61))
    chunks = [(16, 20, 1), (16, 20, 1), (16, 20)]
    if kept == "zarr":
        there: list[Any] = [
            zarr.create_array(tmp_path / str(i), data=a, chunks=c) for i, (a, c) in enumerate(zip(images, chunks, strict=True))
        ]
    else:
        there = [dask.array.from_array(a, c) for a, c in zip(images, chunks, strict=True)]
    (value, force), (found, slope) = METRICS[name].evaluate(*images), evaluate(METRICS[name].passes, *there, (16, 20))
    assert found == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(slope, force, atol=1e-5 * np.abs(force).max())


@pytest.mark.parametrize("shape", TILES, ids=str)
def test_tiles_of_a_gaussian_are_the_whole(shape: tuple[int, ...]) -> None:
    field = np.random.default_rng(0).normal(size=(*shape, 2)).astype(np.float32)
    for sigma in (2.3, 0.0, (0.4, 3.0, 1.0)[: len(shape)]):
        whole = gaussian_of_whole(field, sigma, len(shape))
        for tile in TILES[shape][:3]:
            np.testing.assert_allclose(gaussian(field, sigma, len(shape), tile=tile), whole, atol=1e-6)


def test_a_gaussian_reads_chunked_arrays_and_writes_parts(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    out = zarr.create_array(tmp_path / "o", shape=image.shape, chunks=(8, 8), dtype="float32")
    gaussian(dask.array.from_array(image, (16, 16)), 1.7, 2, tile=(16, 24), out=out)
    np.testing.assert_allclose(out[...], gaussian_of_whole(image, 1.7, 2), atol=1e-6)


@pytest.mark.parametrize("shape", TILES, ids=str)
def test_every_pixel_is_in_one_part(shape: tuple[int, ...]) -> None:
    for tile in TILES[shape]:
        count = np.zeros(shape, int)
        for box in boxes(shape, tile):
            outer, core = grown(box, 3, shape)
            assert np.zeros(size_of(outer))[core].shape == size_of(box)
            count[box] += 1
        assert (count == 1).all()


def test_tiles_fit_the_memory_with_their_halo() -> None:
    tile = fitting((300, 200, 250), 40, 4e6, halo=4)
    assert np.prod([t + 8 for t in tile]) * 40 <= 4e6 < 8 * np.prod([t + 8 for t in tile]) * 40
    assert fitting((300, 200), 40, None) == (300, 200)
    assert fitting((300, 200), 40, 1e9) == (300, 200)
    assert min(fitting((300, 200), 40, 1.0)) >= 4, "too little memory does not end in an endless loop"
