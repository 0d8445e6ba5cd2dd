"""No write outside of the folder of results, whatever links and names lie in it."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histomri.cli import run
from histomri.core import InputError
from histomri.io.check import check_study
from histomri.io.config import load_study
from histomri.io.links import link_problems
from histomri.io.publish import back_from_future, remove_leftovers, whole
from histomri.io.sheets import parse_blocks, parse_guides, parse_landmarks, parse_sections, read_sections
from histomri.stages.parts import begin, current, ready

# one for each way that a run writes: stores, folders of a stage, plain files, logs, records of ours and of Snakemake's
PLACES = [
    "sections/x.ome.zarr",
    "sections/x.ome.zarr/.snakemake_timestamp",
    "stack",
    "transforms",
    "transforms/b",
    "volumes/b/s_in_mri.filling/0123456789abcdef/0",
    "report/index.html",
    "evaluation/metrics.json",
    "provenance.json",
    "logs/ingest/x.log",
    "benchmarks",
    ".histomri.run",
    ".snakemake",
    ".snakemake/metadata/abc",
    ".snakemake/conda",
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of one empty slide, and a precious folder beside it; its config."""
    folder = tmp_path / "study"
    (folder / "out").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (folder / "a.tif").touch()
    (folder / "sections.tsv").write_text("section\tfile\tposition_mm\na\ta.tif\t0\n")
    (folder / "config.yaml").write_text("study: s\nsections: sections.tsv\noutput: out\n")
    return folder / "config.yaml"


def link(place: Path, target: Path | str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


def start(config: Path) -> None:
    run.run(argparse.Namespace(config=config, cores="1", dry_run=False, snakemake=[]))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that Snakemake was started in, without starting it."""
    found: list[str] = []
    here = Path.cwd()
    monkeypatch.setattr(os, "execv", lambda *_: found.append(str(Path.cwd())))
    monkeypatch.chdir(here)
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["precious", "precious/file", "not there yet"])
def test_a_link_that_leads_out_is_refused_before_anything_starts(
    study: Path, started: list[str], place: str, target: str
) -> None:
    outside = study.parents[1] / target
    own = link(study.parent / "out" / place, outside)
    before = sorted(study.parent.rglob("*"))
    with pytest.raises(InputError) as refused:
        start(study)
    # path, target and remedy
    assert str(own) in str(refused.value) and str(outside) in str(refused.value) and "remove the link" in str(refused.value)
    assert not started and sorted(study.parent.rglob("*")) == before
    assert (study.parents[1] / "precious" / "file").read_text() == "kept" and not (study.parents[1] / "not there yet").exists()
    assert [p for p in check_study(study) if str(own) in p.where]


def test_links_over_links_and_in_circles_are_refused_and_all_are_told_at_once(study: Path, started: list[str]) -> None:
    out = study.parent / "out"
    link(out / "stack", "mri")
    link(out / "mri", "../../precious")
    link(out / "report", "report")
    link(out / "logs", "../out/../../precious/..")
    with pytest.raises(InputError) as refused:
        start(study)
    assert [Path(p.where).name for p in refused.value.problems] == ["logs", "mri", "report", "stack"] and not started


def test_an_output_folder_that_is_a_link_to_a_scratch_disk_works(study: Path, started: list[str]) -> None:
    scratch = study.parents[1] / "scratch" / "own"
    scratch.mkdir(parents=True)
    (study.parent / "out").rmdir()
    out = link(study.parent / "out", scratch)
    # a link that stays inside is the user's affair, said by either name of the folder
    link(scratch / "newest", "report")
    link(scratch / "newer", out / "report")
    start(study)
    assert started == [str(scratch)] and link_problems(out) == []
    # nor are the links that conda's environments are full of
    link(scratch / ".snakemake" / "conda" / "abc" / "lib", "/usr/lib")
    link(scratch / "stack", "../elsewhere")
    assert [p.where for p in link_problems(out)] == [str(out / "stack")]


def test_whole_stores_are_not_walked_through(study: Path) -> None:
    """They may hold millions of chunks, and are replaced as a whole; a block may not be named like one."""
    out, outside = study.parent / "out", study.parents[1] / "precious"
    store = out / "sections" / "x.ome.zarr"
    link(store / "0" / "c" / "0", outside)
    assert link_problems(out) == []
    with whole(store) as partial:
        partial.mkdir()
    assert list(store.iterdir()) == [] and (outside / "file").read_text() == "kept"
    link(out / "logs" / "x.ome.zarr" / "0", outside)
    assert len(link_problems(out)) == 1


def test_what_clears_up_removes_links_and_not_what_they_lead_to(study: Path) -> None:
    out, outside = study.parent / "out", study.parents[1] / "precious"
    link(out / "sections" / "x.ome.zarr.partial", outside)
    link(out / "sections" / "x.ome.zarr" / ".snakemake_timestamp", outside / "file")
    late = time.time() + 1e5
    os.utime(outside / "file", (late, late))
    assert len(remove_leftovers(out)) == 1
    back_from_future(out)
    assert (outside / "file").read_text() == "kept" and (outside / "file").stat().st_mtime == pytest.approx(late)


@pytest.mark.parametrize("name", ["../../precious", "/tmp", "", ".", "0123456789ABCDEF", "0123456789abcdef/.."])
def test_a_store_in_parts_that_names_another_folder_is_refused(tmp_path: Path, name: str) -> None:
    working = tmp_path / "s_in_mri.filling"
    store = begin(working)
    ready(working, store)
    assert current(working) == store
    (working / "current.json").write_text(json.dumps({"store": name}))
    with pytest.raises(RuntimeError, match="no store of ours"):
        current(working)


# ---------------------------------------------------------------- names

NAMES = ["../out", "a/b", "/etc/x", "..", "a b", "x\u202e", "e\u0301", "$(x)", "x" * 101, "a.partial", "a.replaced", "a.zarr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_is_refused_in_every_sheet(tmp_path: Path, name: str) -> None:
    sheet = tmp_path / "sheet.tsv"
    rows: dict[Callable[[Path], Any], tuple[str, str]] = {
        parse_sections: ("section\tfile\tposition_mm\tblock\n", f"{name}\ta.tif\t0\t{name}\n"),
        parse_blocks: ("block\tmri\n", f"{name}\t\n"),
        parse_landmarks: ("name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\n", f"p\t{name}\t1\t2\t3\t4\t5\n"),
        parse_guides: ("section\tx\ty\tto_section\tto_x\tto_y\n", f"{name}\t1\t2\t{name}\t3\t4\n"),
    }
    for read, lines in rows.items():
        sheet.write_text("".join(lines), encoding="utf-8")
        with pytest.raises(InputError, match=r"cannot be part of a file name|ends as unfinished results or stores do"):
            read(sheet).checked()


@pytest.mark.parametrize("name", ["../out", "a/b", "a b", "mri", "é", "a\n", "x" * 101, ""])
def test_a_grid_whose_name_leads_out_or_is_no_file_name_is_refused(study: Path, name: str) -> None:
    named = json.dumps({"name": name, "spacing_mm": 0.1})
    study.write_text(study.read_text() + f"resample: {{grids: [{named}]}}\n")
    with pytest.raises(InputError, match=r"resample\.grids"):
        load_study(study)


def test_names_of_every_script_stay_in_the_folder(tmp_path: Path) -> None:
    names = ["Schnitt-1", "切片_2", "срез.3", "a&b+c", "a..b", "A" * 100]
    rows = [f"{name}\ta.tif\t{i}\n" for i, name in enumerate(names)]
    (tmp_path / "sections.tsv").write_text("section\tfile\tposition_mm\n" + "".join(rows), encoding="utf-8")
    found = [s.id for s in read_sections(tmp_path / "sections.tsv")]
    assert found == names
    out = tmp_path / "out"
    assert all((out / "sections" / f"{i}.ome.zarr").resolve().parent == out.resolve() / "sections" for i in found)
