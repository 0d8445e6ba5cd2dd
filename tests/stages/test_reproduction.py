"""Held against its record, a study, an installation or a result that differs is said to, and where."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr

from histomri.cli import main, reproduce
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


def large(folder: Path, monkeypatch: pytest.MonkeyPatch, change: int = 0, level: int = 1) -> dict[str, Any]:
    """A folder of results of which only the affine of the volume is small enough to be decoded, and its record."""
    monkeypatch.setattr("histomri.io.checksums.MOST_BYTES", 128)
    values = np.arange(600, dtype=np.int16).reshape(5, 10, 12)
    values[3, 4, 5] += change
    folder.mkdir()
    np.save(folder / "a.fields.npy", values)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "v.nii")
    with gzip.GzipFile(folder / "v.nii.gz", "wb", mtime=level) as file:
        file.write((folder / "v.nii").read_bytes())
    codec = zarr.codecs.ZstdCodec(level=level)
    array = zarr.create_group(str(folder / "v.ome.zarr"), zarr_format=3).create_array(
        "0", shape=values.shape, dtype=values.dtype, chunks=(1, 5, 6), compressors=codec
    )
    array[...] = values
    monkeypatch.chdir(folder)
    monkeypatch.setattr(provenance, "code_of_rules", lambda: {})
    write_provenance("s", CONFIG, {}, [Path(n) for n in LARGE], folder / "provenance.json")
    return reproduction.read_record(folder / "provenance.json")


LARGE = ("a.fields.npy", "v.nii", "v.nii.gz", "v.ome.zarr")
WHERE = ("values", "voxels", "voxels", "0")


def test_what_is_too_large_to_decode_is_compared_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = tmp_path / "old", tmp_path / "new"
    old, new = large(folders[0], monkeypatch), large(folders[1], monkeypatch, change=7)
    assert reproduction.compared_by_bytes(old, new) == set(zip(LARGE, WHERE, strict=True))
    assert list(reproduction.result_differences(old, old, folders)) == []
    said = list(reproduction.result_differences(old, new, folders))
    assert said == [f"{file}, {name}: 1 of 600 values differ, by 7 at most" for file, name in zip(LARGE, WHERE, strict=True)]
    unseen = list(reproduction.result_differences(old, new, (tmp_path / "nowhere", folders[1])))
    assert len(unseen) == 4 and all(line.endswith("is not here to compare them)") for line in unseen)


def test_other_bytes_that_hold_the_same_large_values_are_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = tmp_path / "old", tmp_path / "new"
    old, new = large(folders[0], monkeypatch), large(folders[1], monkeypatch, level=9)
    assert old["outputs"]["v.ome.zarr"]["content_sha256"] != new["outputs"]["v.ome.zarr"]["content_sha256"]
    assert old["outputs"]["v.nii.gz"]["sha256"] != new["outputs"]["v.nii.gz"]["sha256"]
    assert list(reproduction.result_differences(old, new, folders)) == []


def test_a_large_file_that_was_made_equal_since_it_was_recorded_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = tmp_path / "old", tmp_path / "new"
    old, new = large(folders[0], monkeypatch), large(folders[1], monkeypatch, change=7)
    for name in LARGE[:3]:
        shutil.copyfile(folders[1] / name, folders[0] / name)
    said = list(reproduction.result_differences(old, new, folders))
    assert len(said) == 4 and all("has changed since" in line for line in said[:3])


def test_a_record_from_before_large_arrays_were_named_still_has_them_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = tmp_path / "old", tmp_path / "new"
    old, new = large(folders[0], monkeypatch), large(folders[1], monkeypatch, change=7)
    for output in old["outputs"].values():
        output["arrays"] = {name: c for name, c in output["arrays"].items() if "sha256" in c}
    assert len(list(reproduction.result_differences(old, new, folders))) == 4
    assert list(reproduction.result_differences(old, {**new, "outputs": old["outputs"]}, folders)) == []


@pytest.mark.parametrize(("change", "status"), [(0, 0), (7, 1)])
def test_the_command_says_how_many_were_compared_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: int, status: int
):
    large(tmp_path / "old", monkeypatch)
    monkeypatch.setattr(reproduction, "recorded_study", lambda record, folder: None)
    monkeypatch.setattr(reproduction, "input_differences", lambda record, study: [])

    def run_again(config: dict[str, Any], output: Path, cores: str) -> int:
        output.mkdir()
        large(output / "results", monkeypatch, change)
        return 0

    monkeypatch.setattr(reproduce, "_run_again", run_again)
    given = ["reproduce", str(tmp_path / "old/provenance.json"), "--inputs", str(tmp_path), "--output", str(tmp_path / "new")]
    assert main(given) == status
    said = capsys.readouterr().out
    count = "4 of 6 arrays in 4 files differ" if change else "all 6 arrays in 4 files are equal, bit for bit"
    assert f"results: {count} (4 too large to decode, compared by the bytes of their files)" in said


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
    older = {**record["inputs"]["a.png"], "checksum of an older kind": "?"}
    assert list(reproduction.input_differences({**record, "inputs": {**record["inputs"], "a.png": older}}, study)) == []
    (known_by_size,) = reproduction.input_differences({**record, "inputs": {**record["inputs"], "a.png": {"bytes": 5}}}, study)
    assert known_by_size == "a.png: its content is another"
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
