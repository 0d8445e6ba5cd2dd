"""A digital block on disc must agree with its truth, hide it from the pipeline, and be whole or absent."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import openslide
import pytest
import yaml

from histomri.testing import phantom
from histomri.testing.slides import label_image, write_slide

Made = tuple[Path, phantom.Truth]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def landmarks(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sections, pixels (n, 2) as x, y, and RAS mm (n, 3) as x, y, z."""
    rows = table(folder / "landmarks.tsv")
    pixels = np.array([[float(r["x"]), float(r["y"])] for r in rows])
    ras = np.array([[float(r["mri_x"]), float(r["mri_y"]), float(r["mri_z"])] for r in rows])
    return [r["section"] for r in rows], pixels, ras


def test_landmarks_are_where_the_written_truth_says(tiny: Made) -> None:
    folder, _ = tiny
    truth = phantom.load_truth(folder)
    sections, pixels, ras = landmarks(folder)
    assert len(sections) == truth.spec.n_landmarks
    for section, xy, point in zip(sections, pixels, ras, strict=True):
        z, y, x = truth.section_to_mri(section, xy[::-1] * truth.spec.pixel_size_mm)
        np.testing.assert_allclose((-x, -y, z), point, atol=2e-5)


def test_landmarks_lie_in_tissue_of_the_slide_and_of_the_mri(tiny: Made) -> None:
    """Read back through openslide and nibabel, so that a wrong axis or sign on the way to disc shows."""
    folder, truth = tiny
    sections, pixels, ras = landmarks(folder)
    labels = nib.load(folder / "labels.nii.gz")
    index = nib.affines.apply_affine(np.linalg.inv(labels.affine), ras).round().astype(int)
    volume = np.asarray(labels.dataobj)[tuple(index.T)]
    exact = truth.specimen.labels(
        np.array([truth.section_to_block(s, p[::-1] * truth.spec.pixel_size_mm) for s, p in zip(sections, pixels, strict=True)])
    )
    assert (volume == exact).mean() > 0.7 and (volume > 0).mean() > 0.85
    intensity = np.asarray(nib.load(folder / "mri.nii.gz").dataobj)[tuple(index.T)]
    assert np.median(intensity) > 4 * np.median(np.asarray(nib.load(folder / "mri.nii.gz").dataobj))
    for section, (x, y) in zip(sections, pixels, strict=True):
        if truth.sections[section].bad is None:
            slide = openslide.OpenSlide(folder / "slides" / f"{section}.tif")
            spot = np.asarray(slide.read_region((round(x) - 1, round(y) - 1), 0, (3, 3)))[..., :3]
            assert spot.mean() < 225


def test_slides_show_the_labels_of_the_truth(tiny: Made) -> None:
    folder, truth = tiny
    for section in truth.sections.values():
        if section.bad == "lost":
            continue
        slide = openslide.OpenSlide(folder / "slides" / f"{section.id}.tif")
        assert slide.dimensions == section.shape[::-1]
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1000 * truth.spec.pixel_size_mm, rel=1e-4)
        if section.bad is None:
            pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
            tissue = cv2.resize(pixels, np.array(section.shape)[::-1] // 4, interpolation=cv2.INTER_AREA).min(axis=-1) < 215
            exact = label_image(truth, section, 4) > 0
            assert 2 * (tissue & exact).sum() / (tissue.sum() + exact.sum()) > 0.93


def test_tissue_never_touches_the_rim_of_its_slide(tiny: Made) -> None:
    for section in tiny[1].sections.values():
        labels = label_image(tiny[1], section, 2)
        assert not (labels[:2].any() or labels[-2:].any() or labels[:, :2].any() or labels[:, -2:].any())


def test_the_mri_is_oblique_in_millimetres_and_bounds_the_tissue(tiny: Made) -> None:
    image = nib.load(tiny[0] / "mri.nii.gz")
    assert image.header["sform_code"] > 0 and image.header.get_xyzt_units()[0] == "mm"
    direction = image.affine[:3, :3] / tiny[1].spec.mri_spacing_mm
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-5)
    assert np.abs(direction).max() < 0.9999
    labels = np.asarray(nib.load(tiny[0] / "labels.nii.gz").dataobj)
    for axis in range(3):
        for end in (0, -1):
            assert not labels.take(end, axis).any()


def test_photographs_show_the_unshrunk_tissue_where_the_camera_says(tiny: Made) -> None:
    folder, truth = tiny
    section = truth.sections["s003"]
    picture = cv2.imread(str(folder / "blockface" / "s003.png"))[..., ::-1].astype(float)
    spacing = truth.spec.blockface_pixel_mm
    photo = np.stack(np.meshgrid(*[np.arange(n) * spacing for n in picture.shape[:2]], indexing="ij"), axis=-1)
    plane = photo @ section.camera[:2, :2].T + section.camera[:2, 2]
    exact = truth.specimen.labels(np.concatenate([np.full((*plane.shape[:2], 1), section.position_mm), plane], axis=-1)) > 0
    inner = np.abs(plane).max(axis=-1) < 0.55 * truth.spec.size_mm[1]
    redness = picture[..., 0] - picture[..., 2]
    seen = redness > 30
    assert 2 * (seen & exact & inner).sum() / ((seen & inner).sum() + exact.sum()) > 0.85


def test_sheets_give_nothing_of_the_truth_away(tiny: Made) -> None:
    folder, truth = tiny
    rows = table(folder / "sections.tsv")
    assert list(rows[0]) == ["section", "file", "position_mm", "stain", "status", "blockface"]
    for row, section in zip(rows, truth.sections.values(), strict=True):
        lost = section.bad == "lost"
        assert row["status"] == ("missing" if lost else "ok") and (row["file"] == "") == lost
        assert lost or (folder / row["file"]).is_file()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config) == {"study", "sections", "blocks", "landmarks", "output"} and config["output"] == "../out"
    assert list(table(folder / "blocks.tsv")[0]) == ["block", "mri", "blockface_pixel_size_mm"]


def test_the_stored_label_images_are_the_truths(tiny: Made) -> None:
    folder, truth = tiny
    stored = sorted((folder / "truth" / "labels").glob("*.png"))
    assert stored
    for path in stored:
        expected = label_image(truth, truth.sections[path.stem], phantom.LABEL_FACTOR)
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


def hashes(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_seed_makes_the_same_bytes_again(tiny: Made, tmp_path: Path) -> None:
    phantom.make(tmp_path / "again", phantom.TINY, output="../out")
    assert hashes(tmp_path / "again") == hashes(tiny[0])


def test_without_blockface_no_column_and_no_photograph(tmp_path: Path) -> None:
    phantom.main([str(tmp_path / "bare"), "--preset", "tiny", "--no-blockface", "--seed", "4", "--output", "here"])
    assert "blockface" not in table(tmp_path / "bare" / "sections.tsv")[0]
    assert not (tmp_path / "bare" / "blockface").exists()
    assert yaml.safe_load((tmp_path / "bare" / "config.yaml").read_text())["output"] == "here"
    assert phantom.load_truth(tmp_path / "bare").spec == replace(phantom.TINY, seed=4, blockface=False)


def test_an_interrupted_run_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "make_slide", fail)
        with pytest.raises(KeyboardInterrupt):
            phantom.make(tmp_path / "block", phantom.TINY)
    assert not (tmp_path / "block").exists()
    said: list[str] = []
    phantom.make(tmp_path / "block", phantom.TINY, say=said.append)
    assert (tmp_path / "block" / "truth" / "truth.json").is_file()
    assert not (tmp_path / "block.partial").exists() and "interrupted" in said[0]


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        phantom.make(tmp_path / "mine", phantom.TINY)


def test_a_pyramid_with_a_ragged_rim_keeps_its_pixels_in_place(tmp_path: Path) -> None:
    pixels = np.full((1031, 1286, 3), 250, np.uint8)
    pixels[400:480, 800:880] = 20
    write_slide(tmp_path / "x.tif", pixels, 0.01)
    slide = openslide.OpenSlide(tmp_path / "x.tif")
    assert slide.level_dimensions == ((1286, 1031), (321, 257), (80, 64))
    level = np.asarray(slide.read_region((0, 0), 1, (321, 257)))[..., 0]
    rows, columns = np.nonzero(level < 130)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (100, 119, 200, 219)
