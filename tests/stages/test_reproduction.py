"""Held against its record, a study, an installation or a result that differs is said to, and where."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histomri.core import InputError
from histomri.io.config import default_config
from histomri.stages import provenance, reproduction
from histomri.stages.provenance import write_provenance
from histomri.testing.fuzz_seeds import PROVENANCE
from histomri.testing.mutants import mutated_json

CONFIG = {"study": "s", "sections": "sections.tsv", "output": "out"}


def result(folder: Path, monkeypatch: pytest.MonkeyPatch, change: float = 0.0) -> dict[str, Any]:
    """A folder of results with one array that may differ, and its record."""
    (folder / "stack").mkdir(parents=True)
    values = np.arange(6, dtype=np.float32)
    values[4] += change
    np.save(folder / "stack" / "a.fields.npy", values)
    (folder / "stack" / "a.json").write_text(json.dumps({"x": [1.5, 2.5]}))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(provenance, "code_of_rules", lambda: {"stack/solve": "0"})
    write_provenance("s", CONFIG, {}, [Path("stack")], folder / "provenance.json")
    return reproduction.read_record(folder / "provenance.json")


def test_an_array_that_differs_is_named_with_how_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = tmp_path / "old", tmp_path / "new"
    old, new = result(folders[0], monkeypatch), result(folders[1], monkeypatch, 0.5)
    assert list(reproduction.result_differences(old, old, folders)) == []
    assert list(reproduction.result_differences(old, new, folders)) == [
        "stack/a.fields.npy, values: 1 of 6 values differ, by 0.5 at most"
    ]
    (folders[0] / "stack/a.fields.npy").unlink()
    (said,) = reproduction.result_differences(old, new, folders)
    assert "not here to compare" in said
    new["outputs"].pop("stack/a.json")
    assert "stack/a.json, numbers: only in the recorded result" in list(reproduction.result_differences(old, new, folders))


def test_an_input_that_changed_went_or_came_is_named(tmp_path: Path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    sheet = tmp_path / "sections.tsv"
    sheet.write_text("section\tfile\tposition_mm\na\ta.png\t0\nb\tb.png\t1\n")
    config = {**default_config(), **CONFIG}
    record: dict[str, Any] = {"config": config, "inputs": {}}
    study = reproduction.recorded_study(record, tmp_path)
    files = {name: tmp_path / name for name in ("a.png", "b.png", "sections.tsv")}
    record["inputs"] = {name: provenance.file_record(file) for name, file in files.items()}
    assert list(reproduction.input_differences(record, study)) == []
    (tmp_path / "a.png").write_bytes(b"A.png")
    (tmp_path / "b.png").unlink()
    said = list(reproduction.input_differences({**record, "inputs": {**record["inputs"], "c.png": {}}}, study))
    assert said[0] == "a.png: its content is another"
    assert said[1].startswith("b.png: there is no file") and said[2].startswith("c.png: recorded, and not named")


def test_another_version_or_code_is_named_and_an_unrelated_package_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "code_of_rules", lambda: {"stack/solve": "0", "mri/pose": "1"})
    record = provenance.programs()
    assert list(reproduction.program_differences(record)) == []
    record["packages"] = {**record["packages"], "numpy": "1.0", "some-game": "3"}
    record["histomri"] = {**record["histomri"], "code": {"stack/solve": "0", "mri/pose": "2"}}
    said = list(reproduction.program_differences(record))
    assert len(said) == 2
    assert "the code of mri/pose is another" in said[0] and said[1] == f"numpy: 1.0 recorded, {np.__version__} here"


def test_a_file_that_is_no_record_is_refused_in_words(tmp_path: Path):
    (tmp_path / "graph.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match="name the one of a finished study"):
        reproduction.read_record(tmp_path / "graph.json")


def test_the_config_of_a_new_run_names_the_recorded_sheets_and_is_valid(tmp_path: Path):
    from histomri.io.config import config_problems

    config = reproduction.config_from({"config": {**default_config(), **CONFIG}}, tmp_path, tmp_path / "new")
    assert config["sections"] == str(tmp_path / "sections.tsv") and config["output"] == str(tmp_path / "new")
    assert config_problems(config, "config") == []


def test_a_record_of_others_that_was_spoiled_is_refused_in_words_or_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = provenance.programs({})
    monkeypatch.setattr(reproduction, "programs", lambda: here)
    (tmp_path / "sections.tsv").write_text("section\tfile\tposition_mm\na\ta.png\t0\n")
    path, taken = tmp_path / "provenance.json", 0
    for case in range(100):
        path.write_bytes(mutated_json(json.dumps(PROVENANCE), random.Random(case)))
        with contextlib.suppress(InputError):
            record = reproduction.read_record(path)
            taken += 1
            assert all(isinstance(line, str) for line in reproduction.program_differences(record))
            list(reproduction.result_differences(record, PROVENANCE, (tmp_path, tmp_path / "new")))
            reproduction.machine_differences(record, PROVENANCE)
            list(reproduction.input_differences(record, reproduction.recorded_study(record, tmp_path)))
    assert 10 < taken < 90
