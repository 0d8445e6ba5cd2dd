"""`histomri check`: everything wrong is named, together, with file, row, value and remedy; what is right passes."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from histomri.cli import main
from histomri.core.errors import Problem
from histomri.io.check import check_study

CONFIG = "study: s\nsections: sections.tsv\nblocks: blocks.tsv\noutput: results\npixel_size_mm: 0.05\n"
SECTIONS = "section\tfile\tposition_mm\na\ta.png\t0\nb\tb.png\t0.5\n"
BLOCKS = "block\tmri\nblock\tmri.nii.gz\n"
Usage = namedtuple("Usage", "total used free")


def picture(path: Path, width: int = 300, height: int = 200) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


def volume(path: Path, data: np.ndarray | None = None, *, sform: int = 1, unit: str = "mm") -> nibabel.Nifti1Image:
    data = np.random.default_rng(0).random((20, 16, 12), np.float32) if data is None else data
    image = nibabel.Nifti1Image(data, np.diag([1, 1, 1, 1.0]))
    image.set_sform(image.affine, code=sform)
    image.set_qform(image.affine, code=sform)
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    return image


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study without fault: two pictures of 15 x 10 mm, an MRI of 20 mm."""
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    volume(tmp_path / "mri.nii.gz")
    for name, text in (("config.yaml", CONFIG), ("sections.tsv", SECTIONS), ("blocks.tsv", BLOCKS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def found(study: Path) -> list[Problem]:
    return check_study(study / "config.yaml")


def only(study: Path, severity: str = "error") -> Problem:
    problems = found(study)
    assert len(problems) == 1, problems
    assert problems[0].severity == severity
    return problems[0]


def rows(study: Path, *lines: str) -> None:
    (study / "sections.tsv").write_text(
        "section\tfile\tposition_mm\tpixel_size_mm\tregion\tchannel\tstatus\n" + "\n".join(lines) + "\n"
    )


def test_a_sound_study_passes_and_nothing_is_written(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(study.iterdir())
    assert main(["check", str(study / "config.yaml")]) == 0
    assert "no errors, no warnings" in capsys.readouterr().out
    assert sorted(study.iterdir()) == before


def test_faults_of_every_kind_are_reported_together(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "config.yaml").write_text(CONFIG + "devise: cpu\n")
    rows(study, "a\tnothing.png\t0\t\t\t\t", "a\tb.png\t0\t\t0,0,999,10\t\tgood")
    volume(study / "mri.nii.gz", np.zeros((5, 5, 5), np.float32))
    assert main(["check", str(study / "config.yaml")]) == 1
    text = capsys.readouterr().out
    for part in (
        "devise",
        "nothing.png",
        "row 2",
        "'a' stands in row 2",
        "'good'",
        "0,0,999,10",
        "300 x 200",
        "mri.nii.gz",
        "empty",
    ):
        assert part in text, part
    assert f"{study / 'sections.tsv'}, row 3" in text and "7 errors" in text


@pytest.mark.parametrize("name", ["a.png", "mri.nii.gz", "sections.tsv", "blocks.tsv", "landmarks.tsv"])
def test_a_file_dated_to_the_future_is_named_with_the_remedy(study: Path, name: str) -> None:
    """No result could be newer, so that Snakemake would fail every job on it."""
    (study / "landmarks.tsv").write_text("name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\np\ta\t1\t2\t3\t4\t5\n")
    (study / "config.yaml").write_text(CONFIG + "landmarks: landmarks.tsv\n")
    for file in study.iterdir():
        # clocks of two machines may differ a little, and no result is held against the config
        os.utime(file, (time.time() + 30,) * 2)
    os.utime(study / "config.yaml", (time.time() + 86400,) * 2)
    assert found(study) == []
    os.utime(study / name, (time.time() + 86400,) * 2)
    problem = only(study)
    assert problem.where == str(study / name) and "future" in problem.what and "touch" in problem.remedy


def test_no_pixel_size_anywhere(study: Path) -> None:
    (study / "config.yaml").write_text(CONFIG.replace("pixel_size_mm: 0.05\n", ""))
    problems = found(study)
    assert [f"row {n}" in p.where and "states no pixel size" in p.what for n, p in enumerate(problems, 2)] == [True, True]


@pytest.mark.parametrize("pixel", ["50", "0.00005"])
def test_a_pixel_size_off_by_a_thousand(study: Path, pixel: str) -> None:
    rows(study, f"a\ta.png\t0\t{pixel}\t\t\t", "b\tb.png\t0.5\t\t\t\t")
    problem = only(study)
    assert "row 2" in problem.where and f"({pixel} mm)" in problem.what and "millimetres" in problem.remedy


def test_a_pixel_size_off_by_a_thousand_for_all_shows_against_the_mri(study: Path) -> None:
    (study / "config.yaml").write_text(CONFIG.replace("0.05", "0.0005"))  # 0.15 mm long: possible, but not with this MRI
    problems = found(study)
    assert len(problems) == 2 and all("does not fit its MRI of 20 mm" in p.what for p in problems)


def test_regions_and_channels_that_the_slide_has_not(study: Path) -> None:
    rows(study, "a\ta.png\t0\t\t250,0,51,200\t\t", "b\tb.png\t0.5\t\t250,0,50,200\tDAPI\t")
    region, channel = found(study)
    assert "row 2" in region.where and "250,0,51,200" in region.what
    assert "row 3" in channel.where and "'DAPI'" in channel.what and "red" in channel.remedy


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_truncated_picture(study: Path, keep: float) -> None:
    whole = (study / "a.png").read_bytes()
    (study / "a.png").write_bytes(whole[: int(len(whole) * keep)])
    assert "row 2" in only(study).where


def test_unused_sections_may_lack_their_files(study: Path) -> None:
    rows(study, "a\ta.png\t0\t\t\t\t", "b\tgone.png\t0.5\t\t\t\texcluded", "c\t\t1\t\t\t\tmissing")
    assert found(study) == []


def test_slides_that_must_fail_and_slides_that_must_not(study: Path, shared_data: Path) -> None:
    wsi = shared_data / "wsi"
    names = sorted(p.name for p in wsi.iterdir() if p.suffix not in (".txt", ".md", ".json", ".tsv"))
    lines = [f"s{i}\t{wsi / name}\t{i}\t\t\t\t" for i, name in enumerate(names)]
    rows(study, *lines)
    (study / "blocks.tsv").write_text("block\tmri\nblock\t\n")
    failed = {
        name for i, name in enumerate(names) for p in found(study) if f"row {i + 2} " in p.where and "cannot" not in p.severity
    }
    assert {"broken.svs", "small_dicom.dcm"} <= failed
    assert not {n for n in failed if n.endswith(".ndpi") or n.startswith("CMU")}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.ones((5, 5, 5, 3), np.float32), "4D"),
        (np.zeros((5, 5, 5), np.float32), "empty"),
        (np.full((5, 5, 5), np.nan, np.float32), "empty"),
        (np.full((5, 5, 5), 7, np.float32), "every voxel is 7"),
    ],
)
def test_volumes_that_are_no_mri(study: Path, data: np.ndarray, said: str) -> None:
    volume(study / "mri.nii.gz", data)
    problem = only(study)
    assert said in problem.what and "blocks.tsv, row 2 (block block), column mri" in problem.where


def test_an_mri_without_sform_and_qform(study: Path) -> None:
    volume(study / "mri.nii.gz", sform=0)
    assert "neither sform nor qform" in only(study).what


def test_an_mri_with_a_singular_geometry(study: Path) -> None:
    image = volume(study / "mri.nii.gz")
    image.header["srow_x"] = image.header["srow_y"]
    image.header["qform_code"] = 0
    nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header).to_filename(study / "mri.nii.gz")
    assert "singular" in only(study).what


def test_unstated_units_and_disagreeing_forms_are_warnings(study: Path) -> None:
    image = volume(study / "mri.nii.gz", unit="unknown")
    image.set_qform(np.diag([2, 2, 2, 1.0]), code=1)
    image.to_filename(study / "mri.nii.gz")
    problems = found(study)
    assert {p.severity for p in problems} == {"warning"}
    said = " ".join(p.what for p in problems)
    assert "millimetres" in said and "sform is used" in said
    assert main(["check", str(study / "config.yaml")]) == 0


def test_voxels_that_are_not_finite_are_counted(study: Path) -> None:
    data = np.random.default_rng(0).random((20, 16, 12), np.float32)
    data[0, 0, :3] = np.nan
    volume(study / "mri.nii.gz", data)
    assert "3 voxels" in only(study, "warning").what


def test_too_little_disk(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    problem = only(study)
    assert "GB are needed" in problem.what and "key output" in problem.where


def test_an_output_that_is_a_file(study: Path) -> None:
    (study / "results").write_text("")
    assert "is a file" in only(study).what


def test_photographs_that_are_missing_or_without_scale(study: Path) -> None:
    picture(study / "p.png")
    text = "section\tfile\tposition_mm\tblockface\na\ta.png\t0\tp.png\nb\tb.png\t0.5\tq.png\n"
    (study / "sections.tsv").write_text(text)
    problems = found(study)
    assert [p.where.rsplit(" ", 1)[1] for p in problems] == ["blockface", "blockface"]
    assert any("q.png" in p.what for p in problems) and any("blockface_pixel_size_mm" in p.remedy for p in problems)
    (study / "blocks.tsv").write_text("block\tmri\tblockface_pixel_size_mm\nblock\tmri.nii.gz\t0.05\n")
    assert "q.png" in only(study).what


def test_landmarks_of_unknown_sections_and_beyond_the_section(study: Path) -> None:
    (study / "config.yaml").write_text(CONFIG + "landmarks: l.tsv\n")
    text = "name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\np\ta\t10\t20\t0\t0\t0\nq\tz\t1\t1\t0\t0\t0\nr\ta\t300\t0\t0\t0\t0\n"
    (study / "l.tsv").write_text(text)
    unknown, outside = found(study)
    assert "row 3" in unknown.where and "'z'" in unknown.what
    assert "row 4" in outside.where and "300 x 200" in outside.what


def test_a_config_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "config.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sheet", "said"),
    [
        ([f"s{i}\ta.png\t{i}\tok\tHE" for i in range(201)], "block block has 201 sections; unknown is for 200 at most"),
        (["a\ta.png\t0\tok\tHE", "b\tb.png\t1\tok\tNissl"], "block block has 2 stains (HE, Nissl); unknown is for one"),
    ],
    ids=["too many sections", "two stains"],
)
def test_an_order_that_cannot_be_found_is_refused_before_anything_runs(study: Path, sheet: list[str], said: str) -> None:
    header = "section\tfile\tposition_mm\tstatus\tstain"
    (study / "sections.tsv").write_text("\n".join([header, *sheet]) + "\n")
    assert found(study) == []
    (study / "config.yaml").write_text(CONFIG + "stack: {order: unknown}\n")
    problem = only(study)
    assert said in problem.what and problem.where == "config, key stack.order"
    others_out = [line.replace("\tok", "\texcluded") for line in sheet[1:]]
    (study / "sections.tsv").write_text("\n".join([header, sheet[0], *others_out]) + "\n")
    assert found(study) == []
