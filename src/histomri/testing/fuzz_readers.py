"""How :mod:`histomri.testing.fuzz` reads each kind of spoiled file: as stages and commands do, and what must come out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from histomri.core.errors import HistomriError

MOST_PX = 1 << 22


def read_slide(path: Path) -> None:
    """A slide as `check`, `ingest` and `register` see it: facts, private fields, corners of every level."""
    from histomri.io.private import private_fields
    from histomri.io.slides import open_slide, probe
    from histomri.io.tiff_chain import is_cut_off

    private_fields(path)
    is_cut_off(path)
    with suppress(HistomriError):
        probe(path)
    with open_slide(path, None, MOST_PX, "sharpest") as slide:
        for level, shape in enumerate(slide.info.levels or [slide.info.shape]):
            for y, x in ((0, 0), (max(0, shape[0] - 50), max(0, shape[1] - 50))):
                _read_box(slide, level, shape, (y, x))
        planes = np.zeros((len(slide.info.channels), 64, 64), slide.info.dtype)
        slide.read_planes(0, 0, min(64, slide.info.shape[0]), min(64, slide.info.shape[1]), planes)
        assert min(slide.info.shape) > 0
        assert slide.info.pixel_size_mm is None or min(slide.info.pixel_size_mm) > 0
    _read_any(path)


def _read_box(slide: Any, level: int, shape: tuple[int, int], corner: tuple[int, int]) -> None:
    size = min(50, shape[0] - corner[0]), min(50, shape[1] - corner[1])
    pixels = slide.read_region(*corner, *size, level)
    assert pixels.shape == (*size, len(slide.info.channels)) and str(pixels.dtype) == slide.info.dtype


def _read_any(path: Path) -> None:
    """An image as `histomri register` opens it, a corner of its pixels."""
    from histomri.io.images import open_image

    opened = open_image(path)
    corner = tuple(slice(0, 40) for _ in opened.image.grid.shape)
    assert np.asarray(opened.image.data[corner]).shape[: opened.image.grid.ndim] == tuple(
        min(40, n) for n in opened.image.grid.shape
    )


def read_kept(path: Path, folder: Path | None = None) -> None:
    """What `ingest.keep` copies out of a slide, and the small image that several sections are found on."""
    from histomri.io.private import IMAGES, keep
    from histomri.io.regions import overview
    from histomri.io.slides import open_slide

    with open_slide(path, None, MOST_PX) as slide:
        keep(path, slide.info.dropped, [*IMAGES, "operator"], folder or path.parent / "kept")
        if np.prod(slide.info.shape) < MOST_PX:
            overview(slide, 64)
        for name in slide.info.dropped:
            slide.read_associated(name)


def read_volume(path: Path) -> None:
    """A NIfTI volume, its geometry alone and whole."""
    from histomri.io.nifti import read_geometry, read_nifti

    grid, _ = read_geometry(path)
    assert np.isfinite(grid.index_to_world).all()
    image = read_nifti(path)
    assert image.data.shape[:3] == image.grid.shape
    _read_any(path)


def read_label(path: Path) -> None:
    """The label of a store, as stages read it."""
    from histomri.io.omezarr import read_pixels
    from histomri.io.zarr_layout import group_attributes

    group_attributes(path / "labels")
    read_pixels(path, "labels/tissue/0")


def read_annotations(path: Path) -> None:
    """GeoJSON, mapped onto itself."""
    from histomri.io import geojson

    document = geojson.read_document(path)
    for shape in geojson.shapes(path, document):
        points = geojson.positions(shape, 2, densify=1.0)
        if len(points) % 2:
            geojson.give_reason(shape, "lost")
        else:
            geojson.replace_positions(shape, points)
            geojson.give_error(shape, 0.5)
    geojson.write_document(path.parent / "out" / "mapped.geojson", document)


def read_points(path: Path) -> None:
    """A table of points, mapped onto itself."""
    from histomri.io import points

    table = points.read_points(path)
    found = table.coordinates(2)
    points.write_points(path.parent / "out" / "mapped.csv", table, found, table.reasons(), errors_mm=table.errors_mm().tolist())


def read_sections(path: Path) -> None:
    """The sheet of sections; what it names must be safe as part of a path."""
    from histomri.core.section import Stack
    from histomri.io import sheets

    found = sheets.read_sections(path, 0.5)
    for section in found:
        assert sheets.section_from_dict(sheets.section_to_dict(section)) == section
        assert all(
            Path("x", n).parent == Path("x") and not n.startswith((".", "-")) for n in (section.id, section.block, section.stain)
        )
    _ = [Stack(b, tuple(s for s in found if s.block == b)).used for b in {s.block for s in found}]


def read_sheet(name: str) -> Callable[[Path], None]:
    """Another sheet by the name of its reader."""

    def read(path: Path) -> None:
        from histomri.io import sheets

        found: Any = {"blocks": sheets.parse_blocks, "landmarks": sheets.parse_landmarks, "guides": sheets.parse_guides}[name](
            path
        )
        found.checked()

    return read


def read_study(path: Path) -> None:
    """A config with sound sheets beside it, as the workflow reads it and as `histomri check` does."""
    from histomri.io.check import check_study
    from histomri.io.config import load_study

    assert check_study(path)
    load_study(path)


def read_given_transform(path: Path) -> None:
    """An ITK transform file as a rough transform between sections."""
    from histomri.io.by_hand import read_rough

    transform = read_rough(path)
    assert np.isfinite(transform.map(np.zeros((1, 2)))).all()


def read_locked(path: Path) -> None:
    """A lock whose JSON, or whose displacements, were changed by hand."""
    from histomri.core import Section
    from histomri.io.by_hand import read_lock

    placement, _ = read_lock(Section("a", None, 0.5, "b", lock=path.with_name("case.json")))
    placement.block_to_section.map(np.zeros((2, 2)))


def read_spaces(path: Path) -> None:
    """A graph of spaces, and a point through it."""
    from histomri.io.graph import read_graph

    graph = read_graph(path)
    graph.map(np.zeros((1, 2)), "slide:a", "mri")


def read_given_pose(path: Path) -> None:
    """An ITK transform file as a rough pose of a block."""
    from histomri.core import Block
    from histomri.io.by_hand import read_pose

    pose = read_pose(Block("b", path, mirror="auto", pose=path))
    assert np.isfinite(pose.inverse().map(np.zeros((1, 3)))).all()


def read_series(path: Path) -> None:
    """A DICOM series, by each of its files, as a user may name any of them."""
    for file in sorted(f for f in path.iterdir() if f.is_file()):
        read_slide(file)
        read_kept(file, path.parent / "kept")


def read_photo(path: Path) -> None:
    """A photograph of the block."""
    from histomri.io.photographs import claimed_shape, read_photograph

    pixels = read_photograph(path, MOST_PX)
    assert pixels.dtype == np.float32 and pixels.shape[2] == 3
    # a camera may turn it
    assert sorted(pixels.shape[:2]) == sorted(claimed_shape(path))


def read_run(path: Path) -> None:
    """The record of another's run, and the study in it."""
    from histomri.io.config import load_study
    from histomri.io.records import read_provenance

    record = read_provenance(path)
    for name in record["outputs"]:
        assert (path.parent / name).resolve().is_relative_to(path.parent.resolve())
    load_study(record["config"], path.parent)


def read_measures(path: Path) -> None:
    """Another's measures of a study."""
    from histomri.io.records import read_metrics

    assert read_metrics(path).keys() is not None


def read_found_pose(path: Path) -> None:
    """The pose that another run found."""
    from histomri.io.records import read_pose_record

    assert np.isfinite(np.linalg.inv(np.array(read_pose_record(path)["mri_to_block"]))).all()


# ---------------------------------------------------------------- what must lie beside a case


def _beside_config(path: Path) -> None:
    from histomri.testing.fuzz_seeds import BLOCKS, SECTIONS

    (path.parent / "sections.tsv").write_text(SECTIONS.replace("r.tfm\ta", "\t"))
    (path.parent / "blocks.tsv").write_text(BLOCKS)


def _beside_lock(path: Path) -> None:
    """The other half of a lock: displacements, or a JSON that vouches for the spoiled ones."""
    from histomri.testing.fuzz_seeds import LOCK, write_lock_parts

    write_lock_parts(path, Path(os.environ["HISTOMRI_FUZZ_SEEDS"]) / LOCK)


def _beside_graph(path: Path) -> None:
    from histomri.io.transform_files import write_affine
    from histomri.transforms import Affine

    write_affine(path.parent / "block_to_a.tfm", Affine(np.eye(3)))
    write_affine(path.parent / "mri_to_block.tfm", Affine(np.eye(4)))


PREPARE: dict[str, Callable[[Path], None]] = {
    "config": _beside_config,
    "provenance": _beside_config,
    "lock": _beside_lock,
    "fields": _beside_lock,
    "graph": _beside_graph,
}
READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "tiff": (read_slide, read_kept),
    "svs": (read_slide, read_kept),
    "picture": (read_slide, read_kept),
    "nifti": (read_volume,),
    "zarr": (read_slide, read_label),
    "geojson": (read_annotations,),
    "points": (read_points,),
    "sections": (read_sections,),
    "blocks": (read_sheet("blocks"),),
    "landmarks": (read_sheet("landmarks"),),
    "guides": (read_sheet("guides"),),
    "config": (read_study,),
    "transform": (read_given_transform,),
    "hdf5": (read_given_transform,),
    "lock": (read_locked,),
    "fields": (read_locked,),
    "pose": (read_given_pose,),
    "dicom": (read_series,),
    "photograph": (read_photo,),
    "provenance": (read_run,),
    "metrics": (read_measures,),
    "found_pose": (read_found_pose,),
    "graph": (read_spaces,),
}
