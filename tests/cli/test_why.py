"""``histomri why`` says in words what Snakemake's reasons mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from histomri.cli import main
from histomri.cli.why import planned

A, B = "a" * 64, "b" * 64
SAID = """\
rule mri_refine:
    input: x
    output: mri/b/refined.json, mri/b/refined.fields.npy
    jobid: 3
    reason: REASON
    wildcards: block=b
    resources: tmpdir=/tmp
[Sat Nov 28 23:55:45 2026]
localrule all:
    input: report/index.html
    jobid: 0
    reason: Input files updated by another job: report/index.html
"""
CHANGED = "Params have changed since last execution: Union of exclusive params before and now across all output: before: "


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Missing output files: a, b, c, d, e", ("its results are not there: a, b, c and 2 more",)),
        ("Updated input files: ../slides/s1.tif", ("its input has changed: ../slides/s1.tif",)),
        ("Input files updated by another job: q.json", ("its input is made anew: q.json",)),
        (f"{CHANGED}'{A}' now: '{B}' ", ("the code that it runs has changed",)),
        (f"{CHANGED}'{A} numba 1.0, numpy 2.0' now: '{B} numba 1.0, numpy 2.0' ", ("the code that it runs has changed",)),
        (
            f"{CHANGED}'{A} numba 1.0, numpy 2.0', {{'y': 2}} now: '{A} llvmlite 7, numba 1.0, numpy 2.1', {{'y': 3}} ",
            ("package llvmlite: not there -> 7", "package numpy: 2.0 -> 2.1", "setting y: 2 -> 3"),
        ),
        (f"{CHANGED}'{A}' now: '{A} numpy 2.0' ", ("the code that it runs has changed",)),
        (f"{CHANGED}'12:{A}' now: '13:{B}' ", ("a file that it reads has other content",)),
        (f"{CHANGED}{{'x': 1, 'y': 2}} now: {{'x': 1, 'y': 3}} ", ("setting y: 2 -> 3",)),
        (f"{CHANGED}{{'x': 1}} now: {{'x': 1, 'z': 'new'}} ", ("setting z: not used -> new",)),
        (f"{CHANGED}[{{'id': 'a'}}] now: [{{'id': 'b'}}] ", ("rows of its sheets have changed",)),
        (f"{CHANGED}None now: 0.002 ", ("a value has changed: None -> 0.002",)),
        (
            f"Updated input files: m.json; {CHANGED}'{A}', {{'y': 2}} now: '{B}', {{'y': 3}} ",
            ("the code that it runs has changed", "setting y: 2 -> 3", "its input has changed: m.json"),
        ),
    ],
)
def test_a_reason_is_told_in_words(reason: str, words: tuple[str, ...]) -> None:
    (job,) = planned(SAID.replace("REASON", reason))
    assert job.name == "mri_refine block=b" and job.reasons == words
    assert job.outputs == ("mri/b/refined.json", "mri/b/refined.fields.npy")


def test_a_study_that_was_never_run_lacks_its_results_and_one_that_is_wrong_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "sections.tsv").write_text("section\tfile\tposition_mm\na\ta.tif\t0\n")
    (tmp_path / "config.yaml").write_text("study: s\nsections: sections.tsv\noutput: out\n")
    assert main(["why", str(tmp_path / "config.yaml"), "a"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "ingest_section section=a" and said[1].startswith("    its results are not there: ")
    assert said[-1] == "1 jobs would run"
    (tmp_path / "a.tif").unlink()
    assert main(["why", str(tmp_path / "config.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err
