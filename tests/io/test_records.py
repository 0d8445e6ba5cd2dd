"""Records that others made: taken where they are what they should be, refused in words where not."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histomri.core import InputError
from histomri.io.records import read_metrics, read_pose_record, read_provenance
from histomri.testing.fuzz_seeds import METRICS, POSE, PROVENANCE
from histomri.testing.mutants import mutated_json

Read = Callable[[Path], dict[str, Any]]
KINDS: list[tuple[Read, dict[str, Any]]] = [
    (read_provenance, PROVENANCE),
    (read_metrics, METRICS),
    (read_pose_record, POSE),
]


def changed(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a record with one value, by its dotted key, replaced."""
    found = copy.deepcopy(record)
    *folders, name = key.split(".")
    at = found
    for folder in folders:
        at = at[folder]
    at[name] = value
    return found


@pytest.mark.parametrize(("read", "record"), KINDS)
def test_a_sound_record_is_taken_as_it_is(tmp_path: Path, read: Read, record: dict[str, Any]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert read(tmp_path / "a.json") == record


@pytest.mark.parametrize(
    ("read", "record", "key", "value", "words"),
    [
        (read_provenance, PROVENANCE, "histomri", 3, "histomri is not of type object"),
        (read_provenance, PROVENANCE, "histomri.code", [1], "histomri.code is not of type object"),
        (read_provenance, PROVENANCE, "packages", 3, "packages is not of type object"),
        (read_provenance, PROVENANCE, "packages", {"numpy": None}, "packages.numpy is not of type string"),
        (read_provenance, PROVENANCE, "config", 3, "config is not of type object"),
        (read_provenance, PROVENANCE, "outputs", {"a": 3}, "outputs.a is not of type object"),
        (read_provenance, PROVENANCE, "outputs", {"a": {"arrays": {"x": {}}}}, "there is no shape, dtype"),
        (read_provenance, PROVENANCE, "inputs", {"a": "b"}, "inputs.a is not of type object"),
        (read_provenance, PROVENANCE, "study_folder", 3, "study_folder is not of type"),
        (read_metrics, METRICS, "sections", {"placed": "\x1b[2J"}, "sections.placed is not of type integer"),
        (read_metrics, METRICS, "tre_mm", [3], "tre_mm is not of type"),
        (read_metrics, METRICS, "mask_dice.median", "x", "mask_dice.median is not of type"),
        (read_pose_record, POSE, "mri_to_block", [[1, 2], [3, 4]], "mri_to_block"),
        (read_pose_record, POSE, "mri_to_block", [[1, 0, 0, 0]] * 4, "singular"),
        (read_pose_record, POSE, "sections_as", None, "sections_as is not of type string"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    tmp_path: Path, read: Read, record: dict[str, Any], key: str, value: Any, words: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(changed(record, key, value)))
    with pytest.raises(InputError, match=words):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "stack/../../x", "..", "", "a\0b"])
def test_a_record_that_names_results_outside_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(changed(PROVENANCE, "outputs", {name: {}})))
    with pytest.raises(InputError, match="names a result that lies outside of its folder"):
        read_provenance(tmp_path / "a.json")


NO_RECORDS = ["", "[", "[]", "3", "null", "[" * 5000, '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 400 + "}"]


@pytest.mark.parametrize("content", NO_RECORDS)
def test_a_file_that_is_no_record_at_all_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for read, _ in KINDS:
        with pytest.raises(InputError, match="was expected"):
            read(tmp_path / "a.json")


def test_records_that_were_spoiled_anyhow_end_in_words_or_soundly(tmp_path: Path) -> None:
    taken = 0
    for case in range(150):
        read, record = KINDS[case % 3]
        (tmp_path / "a.json").write_bytes(mutated_json(json.dumps(record), random.Random(case)))
        try:
            read(tmp_path / "a.json")
            taken += 1
        except InputError as error:
            assert "was expected" in str(error) or "outside" in str(error) or "singular" in str(error)
    assert 15 < taken < 135
