"""The config: defaults, the closed schema, paths, and YAML's traps."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from histomri.core import InputError
from histomri.io.config import STAGES, default_config, load_study, read_schema
from histomri.io.defaults import outputs

MINIMAL = "study: s\nsections: sheets/sections.tsv\nblocks: sheets/blocks.tsv\noutput: ../out\n"


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    (folder / "sheets").mkdir(parents=True)
    (folder / "sheets" / "sections.tsv").write_text("section\tfile\tposition_mm\na\timages/a.svs\t0\n")
    (folder / "sheets" / "blocks.tsv").write_text("block\tmri\nblock\tm.nii.gz\n")
    return folder


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load_study(write(folder, text))
    return str(caught.value)


def test_the_smallest_config_runs_and_paths_belong_to_the_file_that_names_them(
    study_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    study = load_study(write(study_folder, MINIMAL))
    assert study.output == study_folder.parent / "out"
    assert study.sections[0].file == study_folder / "sheets" / "images" / "a.svs"
    assert study.blocks[0].mri == study_folder / "sheets" / "m.nii.gz"
    assert {stage: study.stage(stage) for stage in STAGES} == {stage: default_config()[stage] for stage in STAGES}


def test_a_config_that_snakemake_has_read_gives_the_same_study(study_folder: Path) -> None:
    path = write(study_folder, MINIMAL + "device: cpu\n")
    merged = {**yaml.safe_load(outputs()[next(p for p in outputs() if p.suffix == ".yaml")]), **yaml.safe_load(path.read_text())}
    assert load_study(merged, path) == load_study(path)
    assert load_study(merged, study_folder).output == load_study(path).output


def test_without_blocks_the_sections_name_them(study_folder: Path) -> None:
    study = load_study(write(study_folder, MINIMAL.replace("blocks: sheets/blocks.tsv\n", "")))
    assert [b.id for b in study.blocks] == ["block"] and not study.has_mri("block")


def test_defaults_carry_no_paths() -> None:
    assert not {"study", "sections", "output"} & set(default_config())
    assert default_config()["blocks"] is None and default_config()["landmarks"] is None


def test_unknown_keys_are_errors_and_all_are_named(study_folder: Path) -> None:
    text = refusal(study_folder, MINIMAL + "devise: cpu\nevaluate: {reech: 3}\n")
    assert "key devise" in text and "'device'" in text
    assert "key evaluate.reech" in text and "'reach'" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("device: cuda", "one of auto, cpu, gpu was expected, found 'cuda'"),
        ("pixel_size_mm: 0", "more than 0 was expected, found 0"),
        ("section_spacing_mm: 5e-2", "write 0.05"),  # YAML 1.1 takes it for text
        ("pixel_size_mm: .inf", "finite"),
        ("device: cpu\ndevice: gpu", "'device' stands there twice"),
        ("study2: [", "not YAML"),
        ("resample: {grids: [mir]}", "key resample.grids.0: one of mri, sections was expected, found 'mir'"),
        (
            "resample: {grids: [{name: fine, spacing: 1}]}",
            "key resample.grids.0.spacing: this key is not known -> write 'spacing_mm'",
        ),
    ],
)
def test_bad_values_say_what_to_write(study_folder: Path, line: str, said: str) -> None:
    assert said in refusal(study_folder, MINIMAL + line + "\n")


def test_missing_keys_say_what_they_mean(study_folder: Path) -> None:
    text = refusal(study_folder, "study: s\n")
    assert "key sections" in text and "key output" in text and "folder that receives all results" in text


def test_a_block_that_only_one_sheet_knows(study_folder: Path) -> None:
    (study_folder / "sheets" / "blocks.tsv").write_text("block\tmri\nleft\t\n")
    text = refusal(study_folder, MINIMAL)
    assert "no block 'block'" in text and "block left: no section" in text


@pytest.mark.parametrize("stage", STAGES)
def test_settings_schema_and_defaults_agree(stage: str) -> None:
    schema = read_schema(stage)
    settings = getattr(import_module(f"histomri.stages.{stage}"), f"{stage.capitalize()}Settings")
    assert schema["additionalProperties"] is False
    assert [f.name for f in fields(settings)] == list(schema["properties"])
    held = {f.name: _as_yaml(getattr(settings(), f.name)) for f in fields(settings)}
    assert held == default_config()[stage]
    for name, part in schema["properties"].items():
        assert part.get("description"), f"{stage}.{name} needs a description"
        assert _yaml_type(held[name]) in _types(part), f"{stage}.{name}"


def _as_yaml(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_yaml(v) for v in value]
    return {k: _as_yaml(v) for k, v in value.items()} if isinstance(value, dict) else value


def _yaml_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def _types(part: dict[str, Any]) -> list[str]:
    given = part["type"] if isinstance(part["type"], list) else [part["type"]]
    return given + (["integer"] if "number" in given else [])


def test_written_defaults_and_table_of_keys_are_in_step_with_the_schemas() -> None:
    stale = [path.name for path, text in outputs().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run: make config ({stale})"
