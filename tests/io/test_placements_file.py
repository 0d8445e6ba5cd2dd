"""Placements must survive their file bit for bit, or say that they did not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from histomri.core import Grid, InputError
from histomri.io.placements import fields_file, read_placements, write_placements
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements


def _placements() -> Placements:
    random = np.random.default_rng(5)
    sections = {"lost": Placement("lost", 0.1 + 0.2, None, flags=("empty: no tissue",), confidence=0.0)}
    for i, name in enumerate("ab"):
        field = DisplacementField(
            Grid((4 + i, 3), [0.1, 0.3], [-1 / 3, 2.0]), random.normal(size=(4 + i, 3, 2)).astype(np.float32)
        )
        field.values[0, 0] = np.nan
        sections[name] = Placement(
            name,
            1 / 3 + i,
            Affine.from_parts(random.normal(size=(2, 2)), [1 / 7, -3]),
            field,
            (),
            1 / 9,
            {"ncc": np.float32(0.5)},
        )
    return Placements("b", sections, Affine.from_parts(random.normal(size=(3, 3)), random.normal(size=3)), {"n": 3})


def test_every_bit_survives(tmp_path: Path) -> None:
    before = _placements()
    write_placements(tmp_path / "placements.json", before)
    after = read_placements(tmp_path / "placements.json")
    assert list(after.sections) == list(before.sections)
    assert np.array_equal(after.mri_to_block.matrix, before.mri_to_block.matrix)
    for name, placement in before.sections.items():
        again = after.sections[name]
        assert (again.position_mm, again.confidence, again.flags) == (
            placement.position_mm,
            placement.confidence,
            placement.flags,
        )
        if placement.affine is not None:
            assert np.array_equal(again.affine.matrix, placement.affine.matrix)
            assert np.array_equal(again.field.values, placement.field.values, equal_nan=True)
            assert np.array_equal(again.field.grid.index_to_world, placement.field.grid.index_to_world)
            assert again.block_to_section.from_space == "block:b"
            assert again.block_to_section.to_space == f"section:{name}"


def test_an_unplaced_section_stays_unplaced(tmp_path: Path) -> None:
    write_placements(tmp_path / "placements.json", _placements())
    again = read_placements(tmp_path / "placements.json")
    assert not again.sections["lost"].is_placed
    assert again.mri_to_block.to_space == "block:b"


def test_displacements_of_another_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "placements.json"
    write_placements(path, _placements())
    values = np.load(fields_file(path))
    np.save(fields_file(path), values + 1)
    with pytest.raises(InputError, match="does not belong"):
        read_placements(path)


def test_a_bend_of_the_planes_survives_and_an_older_record_is_flat(tmp_path: Path) -> None:
    grid = Grid((3, 4, 5), [2.0, 1.0, 0.5], [-1 / 3, 2.0, 0.1])
    values = np.zeros((3, 4, 5, 3))
    values[..., 0] = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)
    path = tmp_path / "placements.json"
    write_placements(path, dataclasses.replace(_placements(), plane_bend=DisplacementField(grid, values)))
    again = read_placements(path)
    assert np.array_equal(again.plane_bend.values, values)
    assert np.array_equal(again.plane_bend.grid.index_to_world, grid.index_to_world)
    assert np.array_equal(again.sections["b"].field.values, _placements().sections["b"].field.values, equal_nan=True)
    points = np.random.default_rng(3).normal(size=(20, 3))
    np.testing.assert_array_equal(again.pose.map(points), again.plane_bend.map(again.mri_to_block.map(points)))
    record = json.loads(path.read_text())
    del record["plane_bend"]
    path.write_text(json.dumps(record))
    assert read_placements(path).plane_bend is None


def test_a_bend_that_moves_within_the_planes_is_not_written(tmp_path: Path) -> None:
    bend = DisplacementField(Grid((2, 2, 2), 1.0), np.ones((2, 2, 2, 3)))
    with pytest.raises(ValueError, match="along z alone"):
        write_placements(tmp_path / "placements.json", dataclasses.replace(_placements(), plane_bend=bend))


def test_the_same_placements_give_the_same_bytes(tmp_path: Path) -> None:
    write_placements(tmp_path / "a.json", _placements())
    write_placements(tmp_path / "b.json", _placements())
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.fields.npy").read_bytes() == (tmp_path / "b.fields.npy").read_bytes()
