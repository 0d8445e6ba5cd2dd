"""The command itself, and `new` and `summary`."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histomri.cli import COMMANDS, main
from histomri.cli.summary import summary_lines
from histomri.core import InputError
from histomri.io.check import check_study
from histomri.io.config import load_study
from histomri.io.records import read_metrics
from histomri.io.sheets import read_sections
from histomri.io.template import section_ids
from histomri.testing.fuzz_seeds import METRICS
from histomri.testing.many import draw_sections
from histomri.testing.mutants import mutated_json


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "my slides"
    (folder / "day 2").mkdir(parents=True)
    for name in ("s10.png", "s2.png", "day 2/s2.png", "s 1 (a).png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a slide")
    return folder


def test_help_is_quick_and_names_every_command() -> None:
    code = "import sys; from histomri.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # argparse puts what a long name does on the next line
    assert all(re.search(rf"^    {name}\s", said, re.MULTILINE) for name in COMMANDS)
    assert not any(f"'{module}'" in said for module in ("SimpleITK", "numba", "cv2", "zarr", "nibabel"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"histomri {name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chekc"])
    assert ended.value.code == 2 and "chekc" in capsys.readouterr().err


def test_new_writes_what_check_then_reads(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    assert main(["new", str(folder), "--slides", str(slides)]) == 0
    assert "4 sections" in capsys.readouterr().out
    sections = read_sections(folder / "sections.tsv", 1.0)
    assert [s.position_mm for s in sections] == [1, 2, 3, 4]
    assert {s.id: s.file for s in sections} == {
        "day_2_s2": slides / "day 2" / "s2.png",
        "s_1_a": slides / "s 1 (a).png",
        "my_slides_s2": slides / "s2.png",
        "s10": slides / "s10.png",
    }
    assert [s.id for s in sections] == ["day_2_s2", "my_slides_s2", "s10", "s_1_a"]  # 2 comes before 10
    said = " ".join(f"{p.what} {p.remedy}" for p in check_study(folder / "config.yaml"))
    assert "section_spacing_mm" in said and "states no pixel size" in said


def test_new_finds_the_sections_on_each_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for n in (1, 2):
        Image.fromarray(draw_sections(rows=1, columns=3, seed=n).pixels).save(slides / f"slide{n}.png")
    Image.fromarray(np.full((200, 300, 3), 240, np.uint8)).save(slides / "slide3.png")
    order = ["--sections-per-slide", "3", "--reading-order", "row-major-rtl"]
    assert main(["new", str(tmp_path / "study"), "--slides", str(slides), *order]) == 0
    said = capsys.readouterr().out
    assert "9 sections of 3 slides" in said and "3 sections were expected on the slide, 0 were found" in said
    sections = read_sections(tmp_path / "study" / "sections.tsv", 1.0)
    assert [s.id for s in sections] == [f"slide{n}_{k}" for n in (1, 2, 3) for k in (1, 2, 3)]
    assert [s.position_mm for s in sections] == list(range(1, 10))
    lefts = [s.region[0] for s in sections[:6] if s.region]
    assert lefts[:3] == sorted(lefts[:3], reverse=True) and len(set(lefts[:3])) == 3
    assert [s.auto_region for s in sections[6:]] == [(1, 3), (2, 3), (3, 3)]


def test_regions_lists_and_draws_what_auto_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, folder = tmp_path / "slides", tmp_path / "study"
    slides.mkdir()
    drawn = draw_sections(rows=1, columns=3, seed=1)
    Image.fromarray(drawn.pixels).save(slides / "three.png")
    Image.fromarray(np.full((200, 300, 3), 240, np.uint8)).save(slides / "empty.png")
    main(["new", str(folder), "--slides", str(slides), "--sections-per-slide", "3"])
    explicit = [s.region for s in read_sections(folder / "sections.tsv", 1.0) if s.region]
    sheet = (folder / "sections.tsv").read_text()
    for k, region in enumerate(explicit, start=1):
        sheet = sheet.replace(",".join(map(str, region)), f"auto:{k}/3")
    (folder / "sections.tsv").write_text(sheet)
    text = (folder / "config.yaml").read_text().replace("# section_spacing_mm: 0.05", "section_spacing_mm: 0.05")
    (folder / "config.yaml").write_text(text.replace("pixel_size_mm: null  # TO FILL IN", "pixel_size_mm: 0.05"))
    capsys.readouterr()
    assert main(["regions", str(folder / "config.yaml"), "--output", str(tmp_path / "pictures")]) == 1
    said = capsys.readouterr().out
    assert "empty.png: 3 sections were expected on the slide, 0 were found" in said
    assert len(explicit) == 3 and all(",".join(map(str, region)) in said for region in explicit)
    (picture,) = (tmp_path / "pictures").iterdir()
    pixels = np.asarray(Image.open(picture)).astype(int)
    assert pixels.shape == drawn.pixels.shape
    for x, y, _, height in explicit:
        assert np.abs(pixels[y + height // 2, x] - (220, 30, 30)).max() < 40, "the left side of its box"


def test_new_runs_once_its_blanks_are_filled_in(slides: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    main(["new", str(folder), "--slides", str(slides)])
    config = folder / "config.yaml"
    text = config.read_text().replace("# section_spacing_mm: 0.05", "section_spacing_mm: 0.05")
    config.write_text(text.replace("pixel_size_mm: null  # TO FILL IN", "pixel_size_mm: 0.05"))
    assert [p for p in check_study(config) if p.severity == "error"] == []
    assert load_study(config).stains("block") == ("histology",)


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sections.tsv").write_text("mine")
    assert main(["new", str(tmp_path)]) == 2
    assert "there already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["sections.tsv"] and (tmp_path / "sections.tsv").read_text() == "mine"


def test_new_says_when_a_folder_holds_no_slides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "study"), "--slides", str(tmp_path)]) == 2
    assert "no slide was found" in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_ids_are_unique_and_fit_for_file_names() -> None:
    paths = [Path("a/x 1.ome.tif"), Path("b/x 1.svs"), Path("b/x 1.ndpi"), Path("c/ü.png"), Path("c/---.png")]
    assert section_ids(paths) == ["a_x_1", "b_x_1_1", "b_x_1_2", "ü", "section"]


def test_summary_before_and_after_a_run(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = "section\tfile\tposition_mm\na\ta.png\t0\n"
    (tmp_path / "s.tsv").write_text(sheet)
    config = tmp_path / "c.yaml"
    config.write_text("study: s\nsections: s.tsv\noutput: out\n")
    assert main(["summary", str(config)]) == 2
    assert "no results yet" in capsys.readouterr().err
    (tmp_path / "out" / "evaluation").mkdir(parents=True)
    metrics = {"tre_mm": {"n": 120, "median": 0.2, "mean": 0.2, "p95": 0.45, "max": 0.8}, "sections": {"placed": 28, "lost": 2}}
    (tmp_path / "out" / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    assert main(["summary", str(config)]) == 0
    said = capsys.readouterr().out
    assert "120 landmarks" in said and "median 0.200 mm" in said and str(tmp_path / "out" / "report" / "index.html") in said


def test_summary_leaves_out_what_was_not_measured() -> None:
    assert list(summary_lines({"tre_mm": None, "mask_dice": {"median": None}, "sections": {"placed": 3}})) == [
        "sections: 3 placed"
    ]


def test_summary_begins_with_a_pose_that_is_in_doubt() -> None:
    pose = {"b": {"confidence": 0.6, "warning": "the pose is in doubt"}, "c": {"confidence": 0.9, "warning": None}, "d": None}
    assert list(summary_lines({"pose": pose, "sections": {"placed": 3}})) == [
        "WARNING, block b: the pose is in doubt.",
        "sections: 3 placed",
    ]


def test_summary_of_measures_that_somebody_spoiled_ends_in_words_or_soundly(tmp_path: Path) -> None:
    said = 0
    for case in range(150):
        (tmp_path / "metrics.json").write_bytes(mutated_json(json.dumps(METRICS), random.Random(case)))
        with contextlib.suppress(InputError):
            lines = list(summary_lines(read_metrics(tmp_path / "metrics.json")))
            assert all("\n" not in line and line.isprintable() for line in lines)
            said += 1
    assert 15 < said < 135
