"""Volumes of synthetic stacks whose truth is known."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import yaml
from scipy import ndimage

from histomri.core import Block, Grid, Image, Section
from histomri.io.checksums import checksums
from histomri.io.nifti import read_nifti, write_nifti
from histomri.io.omezarr import PyramidSpec, Storage, open_array, write_pyramid
from histomri.io.placements import write_placements
from histomri.io.pyramid import Reading
from histomri.io.sections import SectionManifest, StainRecord, read_manifest, write_manifest
from histomri.stages.grids import grid_entry, grid_names, grid_problems
from histomri.stages.resample import ResampleSettings, resample_volume
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

PIXEL_MM, SHAPE, SPACING = 0.05, (80, 96), 0.5


def _truth(block: np.ndarray) -> np.ndarray:
    """A smooth colour at block points (..., 3) in mm."""
    z, y, x = np.moveaxis(block, -1, 0)
    return np.stack([120 + 40 * np.sin(y), 120 + 40 * np.cos(1.2 * x), 60 + 20 * z], -1)


class Study:
    """Sections cut from ``_truth`` by known placements, ingested, with an MRI in an oblique pose."""

    def __init__(self, folder: Path, bend: bool = True, straight: bool = False):
        self.folder, self.sections, self.manifests, placed = folder, [], {}, {}
        random = np.random.default_rng(3)
        for i in range(5):
            name, z = f"s{i}", 1.0 + SPACING * i
            linear = np.eye(2) if straight else [[0.1, 0.9 + 0.02 * i], [-0.95, 0.1 + 0.02 * i]]
            affine = Affine.from_parts(linear, [0, 0] if straight else [0.2, 4.2])
            field = DisplacementField(Grid((7, 7), 1.0, [-1.0, -1.0]), (random.normal(size=(7, 7, 2)) * 0.05).astype(np.float32))
            placed[name] = Placement(name, z, affine, field if bend and not straight else None)
            self._ingest(name, z, placed[name])
        self.pose = Affine.from_parts(np.array([[0.98, 0.1, -0.1], [-0.1, 0.99, 0.05], [0.1, -0.05, 0.99]]), [0.1, 0.3, 0.2])
        self.placements = Placements("b", placed, self.pose)
        write_placements(folder / "placements.json", self.placements)
        mri = Image(Grid((13, 18, 17), 0.25, [0.6, 0.1, 0.2]), np.ones((13, 18, 17), np.float32))
        write_nifti(folder / "mri.nii.gz", mri)

    def _ingest(self, name: str, z: float, placement: Placement) -> None:
        grid = Grid(SHAPE, PIXEL_MM)
        plane = placement.block_to_section.inverse().map(grid.points())
        pixels = np.rint(_truth(np.insert(plane, 0, z, axis=-1))).astype(np.uint8)
        store = self.folder / "sections" / f"{name}.ome.zarr"
        colours = ("red", "green", "blue")
        reading = Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w])
        write_pyramid(store, PyramidSpec(name, grid, colours, "uint8", 3), reading, Storage(32, 64))
        self.manifests[name] = self.folder / "ingest" / name / "manifest.json"
        write_manifest(
            self.manifests[name], SectionManifest(name, store, SHAPE, (PIXEL_MM,) * 2, 3, colours, "uint8", (255.0,) * 3)
        )
        self.sections.append(Section(name, Path("x"), z, "b"))

    def bend_planes(self) -> DisplacementField:
        """Bends the planes in the MRI, by up to half of their spacing, and the placements with them."""
        grid = Grid((7, 6, 6), [0.5, 1.0, 1.0], [0.0, -0.5, -0.5])
        values = np.zeros((7, 6, 6, 3))
        z, y, x = np.moveaxis(grid.points(), -1, 0)
        values[..., 0] = 0.2 * np.sin(y) * np.cos(0.7 * z) + 0.1 * (x - 2)
        bend = DisplacementField(grid, values, "block:b", "block:b")
        self.placements = replace(self.placements, plane_bend=bend)
        write_placements(self.folder / "placements.json", self.placements)
        return bend

    def run(self, grid: str = "mri", has_mri: bool = True, **settings) -> tuple[Image, Image, dict]:
        out = self.folder / "volumes"
        names = [out / n for n in ("v.ome.zarr", "v.nii.gz", "c.nii.gz", "v.json")]
        block = Block("b", self.folder / "mri.nii.gz" if has_mri else None)
        chosen = ResampleSettings(**settings)
        resample_volume(self.sections, self.manifests, block, self.folder / "placements.json", grid, "histology", chosen, *names)
        record = json.loads(names[3].read_text())
        return read_nifti(names[1], may_be_empty=True), read_nifti(names[2], may_be_empty=True), record


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


def test_colours_arrive_where_they_belong_in_the_mri(study: Study) -> None:
    volume, coverage, record = study.run()
    covered = coverage.data > 0
    assert covered.mean() > 0.25
    block = study.pose.map(volume.grid.points())
    between = covered & (block[..., 0] >= 1.0) & (block[..., 0] <= 3.0)
    core = ndimage.binary_erosion(between)
    np.testing.assert_allclose(volume.data[core], _truth(block)[core], atol=2.5)
    assert not volume.data[~covered].any()
    assert record["space"] == "mri"
    assert list(record["sections"]) == [f"s{i}" for i in range(5)]


def test_colours_of_bent_planes_arrive_where_they_belong(tmp_path: Path) -> None:
    study = Study(tmp_path)
    bend = study.bend_planes()
    for chunk in (64, 8):
        volume, coverage, _ = study.run(chunk_px=chunk)
        covered = coverage.data > 0
        flat = study.pose.map(volume.grid.points())
        block = bend.map(flat)
        between = covered & (block[..., 0] >= 1.0) & (block[..., 0] <= 3.0)
        core = ndimage.binary_erosion(between)
        assert covered.mean() > 0.25
        np.testing.assert_allclose(volume.data[core], _truth(block)[core], atol=2.5)
        assert np.abs(_truth(block) - _truth(flat))[core].max() > 3.5


def test_the_volume_lies_on_the_mri_in_every_program(study: Study) -> None:
    study.run()
    mri, volume = (sitk.ReadImage(str(study.folder / n)) for n in ("mri.nii.gz", "volumes/v.nii.gz"))
    assert mri.GetSize() == volume.GetSize()
    np.testing.assert_allclose(volume.GetOrigin(), mri.GetOrigin())
    np.testing.assert_allclose(nib.load(study.folder / "volumes/v.nii.gz").affine, nib.load(study.folder / "mri.nii.gz").affine)


def test_a_darker_section_comes_out_like_the_others_only_when_asked(tmp_path: Path) -> None:
    """One section of five says that it is stained twice as strongly: its densities are halved, theirs stay."""
    study = Study(tmp_path, straight=True)
    for name, path in study.manifests.items():
        strength = (0.4,) * 3 if name == "s2" else (0.2,) * 3
        eye = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        stains = StainRecord(None, ("red", "green", "blue"), eye, ("named",) * 3, (1.0,) * 3, strength, strength)
        write_manifest(path, replace(read_manifest(path), stains=stains))
    plain, coverage, record = study.run("sections", has_mri=False)
    assert record["normalised_stain"] is False
    alike, _, record = study.run("sections", has_mri=False, normalise_stain=True)
    assert record["normalised_stain"] is True
    covered = coverage.data > 0
    before, after = (np.log10(256 / (np.asarray(v.data, float) + 1)) for v in (plain, alike))
    for z in range(5):
        gain = 0.5 if z == 2 else 1.0
        np.testing.assert_allclose(after[z][covered[z]], gain * before[z][covered[z]], atol=0.006)


@pytest.mark.parametrize("chunk", [8, 11])
def test_tiles_and_little_memory_change_nothing(study: Study, monkeypatch, chunk: int) -> None:
    volume, coverage, _ = study.run()
    monkeypatch.setattr("histomri.stages.resample.KEPT_SHARE", 0.0)
    tiled, tiled_coverage, _ = study.run(chunk_px=chunk)
    np.testing.assert_array_equal(tiled.data, volume.data)
    np.testing.assert_array_equal(tiled_coverage.data, coverage.data)


@pytest.mark.parametrize(("grid", "key"), [("block", "chunk_px"), ("sections", "plane_chunk_px")])
def test_chunks_change_no_level_of_a_store(study: Study, grid: str, key: str) -> None:
    stores = []
    for chunk in (32, 48):
        study.run(grid, has_mri=False, **{key: chunk})
        stores.append(checksums(study.folder / "volumes/v.ome.zarr"))
    assert len(stores[0]) >= 2
    assert stores[0] == stores[1]


def test_a_run_gives_the_same_bytes_again(study: Study) -> None:
    first = study.run()[2]
    before = (study.folder / "volumes/v.nii.gz").read_bytes()
    assert study.run()[2] == first
    assert (study.folder / "volumes/v.nii.gz").read_bytes() == before


def test_straight_sections_come_back_bit_for_bit(tmp_path: Path) -> None:
    study = Study(tmp_path, straight=True)
    volume, coverage, record = study.run("sections")
    assert volume.data.shape == (5, *SHAPE, 3)
    assert (coverage.data == 1).all()
    for i in range(5):
        stored = open_array(tmp_path / "sections" / f"s{i}.ome.zarr", "0")[...]
        np.testing.assert_array_equal(np.moveaxis(volume.data[i], -1, 0), stored)
    assert record["space"] == "block:b"
    np.testing.assert_allclose(volume.grid.to_world([4, 0, 0]), [3.0, 0, 0], atol=1e-6)


def test_without_an_mri_the_block_has_a_grid(study: Study) -> None:
    volume, coverage, record = study.run("block", has_mri=False)
    assert record["space"] == "block:b"
    np.testing.assert_allclose(volume.grid.spacing_mm, [SPACING, SPACING / 4, SPACING / 4])
    core = ndimage.binary_erosion(coverage.data > 0, structure=np.ones((1, 3, 3)))
    assert core.mean() > 0.3
    np.testing.assert_allclose(volume.data[core], _truth(volume.grid.points())[core], atol=2.5)


def test_any_spacing_covers_the_same_extent(study: Study) -> None:
    volume, _, record = study.run("coarse", grids=["mri", {"name": "coarse", "spacing_mm": 0.5}])
    mri = read_nifti(study.folder / "mri.nii.gz").grid
    np.testing.assert_allclose(volume.grid.spacing_mm, 0.5)
    np.testing.assert_allclose(volume.grid.extent_mm, mri.extent_mm, atol=0.26)
    assert record["sections"]["s0"]["level"] == 2


def test_a_lost_section_is_bridged_and_a_wide_gap_is_not(study: Study) -> None:
    lost = dict(study.placements.sections)
    lost["s2"] = Placement("s2", 2.0, None)
    write_placements(study.folder / "placements.json", Placements("b", lost, study.pose))
    try:
        bridged, full, record = study.run("sections")
        _, open_, _ = study.run("sections", max_gap_spacings=1.0)
    finally:
        write_placements(study.folder / "placements.json", study.placements)
    middle = int(np.argmin(np.abs(bridged.grid.points()[:, 0, 0, 0] - 2.0)))
    assert full.data[middle].mean() > 0.3
    assert not open_.data[middle].any()
    assert any("s2 is left out" in n for n in record["notes"])


def test_no_section_at_all_gives_an_empty_volume_and_says_so(study: Study) -> None:
    nothing = {n: Placement(n, p.position_mm, None) for n, p in study.placements.sections.items()}
    write_placements(study.folder / "placements.json", Placements("b", nothing, study.pose))
    try:
        volume, coverage, record = study.run()
    finally:
        write_placements(study.folder / "placements.json", study.placements)
    assert not volume.data.any()
    assert not coverage.data.any()
    assert any("the volume is empty" in n for n in record["notes"])


def test_a_nifti_that_would_be_too_large_holds_a_coarser_level_and_says_so(study: Study, monkeypatch) -> None:
    monkeypatch.setattr("histomri.stages.resample.MB", 40_000)
    monkeypatch.setattr("histomri.io.volumes.SMALLEST_PX", 8)
    volume, coverage, record = study.run("sections", max_nifti_mb=1)
    assert record["nifti_level"] >= 1
    assert volume.data.size <= 40_000
    assert any("max_nifti_mb" in n for n in record["notes"])
    covered = ndimage.binary_erosion(coverage.data > 0, structure=np.ones((1, 3, 3)))
    np.testing.assert_allclose(volume.data[covered], _truth(volume.grid.points())[covered], atol=6)


def test_schema_and_settings_agree(checkout: Path) -> None:
    schema = yaml.safe_load((checkout / "config/schema/resample.yaml").read_text())
    defaults = ResampleSettings()
    assert schema["additionalProperties"] is False
    assert {n: p["default"] for n, p in schema["properties"].items()} == {
        f.name: getattr(defaults, f.name) for f in fields(defaults)
    }


def test_grids_have_names_of_their_own() -> None:
    entries = ["mri", "sections", {"name": "fine", "spacing_mm": 0.1}]
    assert grid_names(entries, has_mri=True) == ["mri", "sections", "fine"]
    assert grid_names(entries, has_mri=False) == ["block", "sections", "fine"]
    assert grid_entry(entries, "fine") == entries[2]
    assert grid_problems([*entries, {"name": "mri", "spacing_mm": 1}, "mri"]) == [
        "the name 'mri' is used twice",
        "the name 'mri' has a meaning of its own",
    ]
    with pytest.raises(KeyError, match="nowhere"):
        grid_entry(entries, "nowhere")
