"""Every config key and every column of the sheets: which jobs run again when it changes, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from histomri.core import Block
from histomri.io.config import STAGES, read_schema
from histomri.io.placements import write_placements
from histomri.io.sheets import SECTION_COLUMNS
from histomri.io.transform_files import write_affine
from histomri.transforms import Affine
from histomri.transforms.placement import Placement, Placements

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).parent / "plan.py"

INGEST = {"ingest_section"}
VOLUME, PLACE = {"blockface_volume"}, {"blockface_place"}
EDGES, ORDER, SOLVE, DEFORM = {"stack_edges"}, {"stack_order"}, {"stack_solve"}, {"stack_deform"}
POSE, REFINE, VERIFY, TRANSFORMS = {"mri_pose"}, {"mri_refine"}, {"mri_verify"}, {"mri_transforms"}
RESAMPLE, EVALUATE, REPORT, PROVENANCE = {"resample_volume"}, {"evaluate"}, {"report"}, {"provenance"}
NOTHING: set[str] = set()

# Another value of each key, and the rules that use it: they run again, and so does all that is made from what they make. The
# provenance records the whole config, so that it is written anew whatever changes; the report names some keys among its methods.
KEYS: dict[str, tuple[Any, set[str]]] = {
    "study": ("other", EVALUATE | REPORT),
    "sections": ("other.tsv", NOTHING),
    "blocks": ("other_blocks.tsv", NOTHING),
    "landmarks": ("landmarks.tsv", EVALUATE),
    "guides": ("guides.tsv", REFINE),
    "device": ("cpu", NOTHING),
    "pixel_size_mm": (0.002, INGEST),
    "section_spacing_mm": (0.5, NOTHING),
    "ingest.chunk_px": (256, INGEST),
    "ingest.shard_px": (1024, INGEST),
    "ingest.codec": ("none", INGEST),
    "ingest.smallest_level_px": (128, INGEST),
    "ingest.max_memory_mb": (800, NOTHING),
    "ingest.max_plain_px": (1000, INGEST),
    "ingest.max_bad_tiles": (0.2, INGEST),
    "ingest.mask_px": (256, INGEST),
    "ingest.mask_min_contrast": (0.03, INGEST),
    "ingest.mask_min_contrast_dark": (0.2, INGEST),
    "ingest.mask_min_piece": (0.1, INGEST),
    "ingest.mask_max_hole": (0.1, INGEST),
    "ingest.min_tissue_fraction": (0.1, INGEST),
    "ingest.focal_plane": ("first", INGEST),
    "ingest.stains": ({"histology": {"kind": "dab"}}, INGEST),
    "ingest.registration_channel": ("mean", INGEST),
    "ingest.keep": (["label"], INGEST),
    "ingest.reading_order": ("snake", INGEST),
    "blockface.max_photograph_px": (1000000, VOLUME),
    "blockface.align_px": (300, VOLUME),
    "blockface.max_motion_mm": (6.0, VOLUME),
    "blockface.even_light": (False, VOLUME),
    "blockface.surface_threshold": (1.0, VOLUME),
    "blockface.search_px": (50, PLACE),
    "blockface.fine_px": (200, PLACE),
    "blockface.min_score": (0.1, PLACE),
    "blockface.deformable": (False, PLACE),
    "blockface.stiffness": (0.6, PLACE),
    "blockface.chunk_px": (256, VOLUME),
    "blockface.codec": ("none", VOLUME),
    "stack.reach": (3, EDGES | SOLVE | REPORT),
    "stack.batch": (3, EDGES),
    "stack.alpha": (0.02, SOLVE | REPORT),
    "stack.search_px": (50, EDGES | ORDER | SOLVE | REPORT),
    "stack.fine_px": (120, EDGES | ORDER | SOLVE | REPORT),
    "stack.affine_sweeps": (2, DEFORM),
    "stack.deformable_sweeps": (1, DEFORM),
    "stack.work_px": (150, DEFORM),
    "stack.shape_sections": (4.0, DEFORM),
    "stack.min_tissue": (0.03, SOLVE),
    "stack.hint_deg": (20.0, EDGES),
    "stack.strays": (10, ORDER),
    "stack.order": ("unknown", EDGES | ORDER | SOLVE),
    "mri.rotations": (1000, POSE | REPORT),
    "mri.candidates": (10, POSE | REPORT),
    "mri.min_confidence": (0.1, POSE),
    "mri.work_px": (150, POSE | REFINE | VERIFY | REPORT),
    "mri.volume_px": (70, POSE | REFINE),
    "mri.max_gap_mm": (0.1, POSE | REFINE),
    "mri.affine_sweeps": (3, REFINE | REPORT),
    "mri.deformable_sweeps": (1, REFINE | REPORT),
    "mri.mri_weight": (3.0, REFINE | REPORT),
    "mri.neighbour_weight": (2.0, REFINE),
    "mri.neighbours": (1, REFINE | REPORT),
    "mri.max_scale_change": (0.2, REFINE),
    "mri.hold_blockface": (False, REFINE),
    "mri.plane_bend": (False, REFINE),
    "mri.stiffness": (0.2, REFINE),
    "resample.grids": (["mri"], REPORT),
    "resample.interpolation": ("nearest", RESAMPLE),
    "resample.through_plane": ("nearest", RESAMPLE),
    "resample.normalise_stain": (True, RESAMPLE),
    "resample.max_gap_spacings": (2.0, RESAMPLE),
    "resample.block_spacing_mm": (0.1, RESAMPLE),
    "resample.chunk_px": (32, RESAMPLE),
    "resample.plane_chunk_px": (512, RESAMPLE),
    "resample.codec": ("none", RESAMPLE),
    "resample.max_memory_mb": (3000, NOTHING),
    "resample.max_job_mvox": (8000, NOTHING),
    "resample.max_nifti_mb": (3000, RESAMPLE),
    "evaluate.outlier_z": (5.0, EVALUATE),
    "evaluate.peer_window": (7, EVALUATE),
    "evaluate.min_mask_dice": (0.5, EVALUATE),
    "evaluate.min_confidence": (0.4, EVALUATE),
    "evaluate.min_pose_confidence": (0.9, EVALUATE),
    "evaluate.max_folding": (0.1, EVALUATE),
    "evaluate.max_nmi_loss": (0.02, EVALUATE),
    "evaluate.min_missing": (0.01, EVALUATE),
    "evaluate.min_extra": (0.05, EVALUATE),
    "evaluate.min_blotch": (0.09, EVALUATE),
    "evaluate.min_stain_change": (0.3, EVALUATE),
    "evaluate.min_blur": (0.3, EVALUATE),
    "evaluate.spacing_mm": (0.5, EVALUATE | REPORT),
    "evaluate.max_pixels": (300, EVALUATE | REPORT),
    "evaluate.reach": (3, EVALUATE),
    "evaluate.report_pixels": (300, REPORT),
    "evaluate.report_max_mb": (20.0, REPORT),
}
# what moves the whole study is no setting of a job: a study that moved is tested in test_reruns.py
NOT_A_SETTING = {"output"}
ROWS = {"blockface_place", "stack_order", "stack_solve", "stack_deform", "mri_pose", "mri_refine", "mri_verify", "mri_transforms"}
ROW_READERS = ROWS | {"resample_volume", "evaluate", "report"}
# Another value in section a1's row, and the rules of its own block that use it.
COLUMNS: dict[str, tuple[str, set[str]]] = {
    "file": ("new.tif", INGEST),
    "position_mm": ("0.6", ROW_READERS | EDGES | VOLUME),
    "thickness_mm": ("0.02", ROW_READERS | EDGES),
    "pixel_size_mm": ("0.001", INGEST),
    "region": ("0,0,9,9", INGEST | ROW_READERS | EDGES),
    "channel": ("1", INGEST),
    "status": ("damaged", ROW_READERS | EDGES),
    "flip": ("horizontal", ROW_READERS | EDGES),
    "rotation_deg": ("90", ROW_READERS | EDGES),
    "blockface": ("new.jpg", VOLUME),
    "stain": ("other", INGEST | ROW_READERS | EDGES),
    # columns that need another one beside them, and columns of the user's own
    "transform": ("r.tfm", SOLVE),
    "lock": ("lock.json", SOLVE),
    "note": ("torn", EVALUATE),
}
BESIDE = {"transform": {"transform_from": "a0"}}
# Another value in block a's row of the blocks' sheet, and the rules of its own block (or of the whole study) that use it.
READ_MRI = POSE | REFINE | VERIFY | RESAMPLE | EVALUATE | REPORT
BLOCK_COLUMNS: dict[str, tuple[str, set[str]]] = {
    "mri": ("new.nii.gz", READ_MRI),
    "mri_mask": ("mask.nii.gz", READ_MRI),
    "blockface_pixel_size_mm": ("0.03", VOLUME),
    "mirror": ("auto", POSE),
    "pose": ("p.tfm", POSE),
}
# block b has no MRI: what is said of one there is no matter to it
WITHOUT_MRI = {"mirror": "auto", "blockface_pixel_size_mm": "0.03"}
# what makes new jobs, or none
NAMES = {"section", "block", "index"}


def every_key() -> dict[str, Any]:
    """All keys of the config: of the top level, and of each stage."""
    top = [key for key in read_schema("config")["properties"] if key not in STAGES]
    return dict.fromkeys([*top, *(f"{stage}.{key}" for stage in STAGES for key in read_schema(stage)["properties"])])


def test_every_key_has_a_row() -> None:
    assert set(KEYS) | NOT_A_SETTING == set(every_key())
    assert {*COLUMNS, *NAMES, *(c for beside in BESIDE.values() for c in beside)} - {"note"} == set(SECTION_COLUMNS)
    assert {*BLOCK_COLUMNS, "block"} == {f.name.replace("id", "block") for f in fields(Block)}


Jobs = dict[tuple[str, ...], dict[str, Any]]


def plans(configs: list[Path]) -> list[Jobs]:
    """The jobs of several studies, by rule and wildcards."""
    line = [sys.executable, str(PLAN), str(ROOT / "Snakefile"), *map(str, configs)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(line, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [{(j["rule"], *j["wildcards"].values()): j for j in found} for found in json.loads(done.stdout)]


def due(before: Jobs, after: Jobs) -> set[tuple[str, ...]]:
    """The jobs that would run after a change in a finished study: changed or new, or made from what such a job makes."""
    found = {name for name, job in after.items() if not _is_same(job, before.get(name))}
    grown = True
    while grown:
        made = {file for name in found for file in after[name]["output"]}
        grown = bool(more := {name for name, job in after.items() if name not in found and made & set(job["input"])})
        found |= more
    return found


def _is_same(job: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    return other is not None and all(job[part] == other[part] for part in ("params", "input"))


def roots(before: Jobs, after: Jobs) -> set[str]:
    """The rules of the jobs that depend on the change themselves; those that only have other inputs or are new do not count."""
    return {name[0] for name, job in after.items() if name in before and job["params"] != before[name]["params"]}


def followers(jobs: Jobs, rules: set[str]) -> set[tuple[str, ...]]:
    """All jobs of some rules, and what is made from them."""
    nothing = {name: {**job, "params": {}} for name, job in jobs.items() if name[0] not in rules}
    return due(nothing, {**nothing, **{name: job for name, job in jobs.items() if name[0] in rules}})


def write_study(folder: Path) -> Path:
    """Two blocks of empty files, one with an MRI, both photographed, and what the changed configs and sheets name."""
    for name in ("mri.nii.gz", *(f"{b}{i}.{kind}" for b in "ab" for i in range(4) for kind in ("tif", "jpg"))):
        (folder / name).touch()
    for name in ("new.tif", "new.jpg", "new.nii.gz", "mask.nii.gz"):
        (folder / name).write_bytes(b"other")
    write_affine(folder / "r.tfm", Affine.identity(2))
    write_affine(folder / "p.tfm", Affine.identity(3))
    write_placements(folder / "lock.json", Placements("a", {"a1": Placement("a1", 0.5, Affine.identity(2))}))
    rows = [f"{b}{i}\t{b}{i}.tif\t{b}\t{i * 0.5}\tok\t{b}{i}.jpg" for b in "ab" for i in range(4)]
    for name in ("sections.tsv", "other.tsv"):
        (folder / name).write_text("\n".join(["section\tfile\tblock\tposition_mm\tstatus\tblockface", *rows]) + "\n")
    for name in ("blocks.tsv", "other_blocks.tsv"):
        (folder / name).write_text("block\tmri\na\tmri.nii.gz\nb\t\n")
    (folder / "landmarks.tsv").write_text("name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\np\ta1\t1\t2\t3\t4\t5\n")
    header = "section\tx\ty\tmri_x\tmri_y\tmri_z\tto_section\tto_x\tto_y\n"
    (folder / "guides.tsv").write_text(header + "a1\t1\t2\t3\t4\t5\t\t\t\na1\t9\t9\t3\t4\t6\t\t\t\n")
    config = {"study": "keys", "sections": "sections.tsv", "blocks": "blocks.tsv", "output": "out"}
    config |= {"stack": {"reach": 2, "batch": 2}, "resample": {"grids": ["mri", "sections"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def with_key(config: Path, key: str, value: Any, file: str = "") -> Path:
    """The config with one key changed, as a file beside it."""
    content = yaml.safe_load(config.read_text())
    *stage, name = key.split(".")
    (content.setdefault(stage[0], {}) if stage else content)[name] = value
    changed = config.with_name(file or f"{key}.yaml")
    changed.write_text(yaml.safe_dump(content))
    return changed


def with_cells(config: Path, cells: Mapping[str, str], name: str, row: str = "a1", sheet: str = "sections") -> Path:
    """The config with another sheet, in which the row of a section (or block) has those values."""
    rows = [line.split("\t") for line in config.with_name(f"{sheet}.tsv").read_text().splitlines()]
    header = [*rows[0], *(c for c in cells if c not in rows[0])]
    changed = [dict(zip(header, [*line, *[""] * len(header)], strict=False)) for line in rows[1:]]
    lines = [(line | cells if line[header[0]] == row else line).values() for line in changed]
    config.with_name(f"{name}.tsv").write_text("\n".join("\t".join(line) for line in [header, *lines]) + "\n")
    return with_key(config, sheet, f"{name}.tsv", f"{name}.yaml")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Jobs]:
    """The jobs of a study as it is (""), with each key changed, and with each column changed ("column NAME")."""
    config = write_study(tmp_path_factory.mktemp("keys"))
    configs = {"": config, **{key: with_key(config, key, value) for key, (value, _) in KEYS.items()}}
    for column, (value, _) in COLUMNS.items():
        name = f"column {column}"
        configs[name] = with_cells(config, {column: value, **BESIDE.get(column, {})}, name)
    for column, (value, _) in BLOCK_COLUMNS.items():
        name = f"blocks {column}"
        configs[name] = with_cells(config, {column: value}, name, "a", "blocks")
    configs["without MRI"] = with_cells(config, WITHOUT_MRI, "without MRI", "b", "blocks")
    configs["renamed"] = with_cells(config, {"section": "a9"}, "renamed")
    configs["moved"] = with_cells(config, {"block": "b", "position_mm": "0.7"}, "moved")
    indexed = with_cells(config, {"position_mm": "", "index": "1"}, "index")
    configs["index"] = with_key(indexed, "section_spacing_mm", 0.5, "index.yaml")
    return dict(zip(configs, plans(list(configs.values())), strict=True))


def test_a_key_redoes_what_uses_it_and_nothing_else(planned: dict[str, Jobs]) -> None:
    wrong = {}
    for key, (_, expected) in KEYS.items():
        found = roots(planned[""], planned[key])
        if found != expected | PROVENANCE:
            wrong[key] = f"redoes {sorted(found - PROVENANCE)}, expected {sorted(expected)}"
    assert wrong == {}


SOME = [
    "ingest.mask_px",
    "blockface.fine_px",
    "stack.alpha",
    "stack.work_px",
    "mri.stiffness",
    "resample.codec",
    "evaluate.reach",
]


@pytest.mark.parametrize("key", SOME)
def test_what_is_made_from_it_is_redone_too_and_nothing_beside_it(planned: dict[str, Jobs], key: str) -> None:
    assert due(planned[""], planned[key]) == followers(planned[""], KEYS[key][1] | PROVENANCE)


def test_a_key_leaves_the_blocks_and_grids_alone_that_do_not_use_it(planned: dict[str, Jobs]) -> None:
    again = due(planned[""], planned["stack.work_px"])
    # the block without an MRI alone has a stack that ends in a deformation
    assert ("stack_deform", "b") in again and ("mri_pose", "a") not in again
    again = due(planned[""], planned["mri.rotations"])
    assert ("mri_pose", "a") in again and not {job for job in again if job[0] == "resample_volume" and job[1] == "b"}
    assert {job[3] for job in due(planned[""], planned["resample.chunk_px"]) if job[0] == "resample_volume"} == {"mri", "block"}
    assert {job[3] for job in due(planned[""], planned["resample.plane_chunk_px"]) if job[0] == "resample_volume"} == {"sections"}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_redoes_what_reads_it_in_its_own_block(planned: dict[str, Jobs], column: str) -> None:
    before, after = planned[""], planned[f"column {column}"]
    # the config names another sheet, which the provenance records; stack_deform is for blocks without an MRI
    assert roots(before, after) - PROVENANCE == COLUMNS[column][1] - DEFORM
    assert not {name for name, job in after.items() if name[1:2] == ("b",) and job["params"] != before[name]["params"]}


@pytest.mark.parametrize("column", BLOCK_COLUMNS)
def test_a_column_of_the_blocks_redoes_what_reads_it_in_its_own_block(planned: dict[str, Jobs], column: str) -> None:
    before, after = planned[""], planned[f"blocks {column}"]
    assert roots(before, after) - PROVENANCE == BLOCK_COLUMNS[column][1]
    assert not {name for name, job in after.items() if name[1:2] == ("b",) and job["params"] != before[name]["params"]}
    assert not {name for name in due(before, after) if name[0] in INGEST | EDGES}


def test_a_hand_that_a_block_has_no_mri_for_redoes_nothing_but_its_photographs(planned: dict[str, Jobs]) -> None:
    assert roots(planned[""], planned["without MRI"]) - PROVENANCE == VOLUME


def test_a_section_that_is_renamed_is_ingested_and_redoes_its_block_alone(planned: dict[str, Jobs]) -> None:
    before, after = planned[""], planned["renamed"]
    again = due(before, after)
    assert {name for name in again if name[0] in INGEST} == {("ingest_section", "a9")}
    expected = ROW_READERS | EDGES | VOLUME | TRANSFORMS | INGEST | PROVENANCE
    assert {name[0] for name in again} == expected - DEFORM
    assert not {name for name in again if name[1:2] == ("b",)}


def test_a_section_that_goes_to_another_block_redoes_both_and_no_ingest(planned: dict[str, Jobs]) -> None:
    again = due(planned[""], planned["moved"])
    assert not {name for name in again if name[0] in INGEST}
    both = {name[0] for name in again if name[1:2] == ("a",)}, {name[0] for name in again if name[1:2] == ("b",)}
    shared = VOLUME | PLACE | EDGES | ORDER | SOLVE | RESAMPLE
    assert both == (shared | POSE | REFINE | VERIFY, shared | DEFORM)


def test_an_index_that_says_the_same_position_redoes_nothing(planned: dict[str, Jobs]) -> None:
    assert roots(planned[""], planned["index"]) == PROVENANCE
    assert due(planned[""], planned["index"]) == {("provenance",)}
