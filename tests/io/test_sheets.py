"""Sheets as users really write them: Excel's encodings, half filled rows, and everything that can be wrong in a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from histomri.core import Block, InputError
from histomri.io.sheets import (
    block_from_dict,
    block_to_dict,
    read_blocks,
    read_landmarks,
    read_sections,
    section_from_dict,
    section_to_dict,
)


def sheet(folder: Path, text: str, name: str = "sections.tsv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def problems(path: Path, **options: float) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_sections(path, **options)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_other_programs(tmp_path: Path, encoding: str, ends: str) -> None:
    text = f'section\tfile\tposition_mm\tregion{ends}a\tü/a.svs\t0.5\t"0,10,200,300"{ends}{ends}'
    (section,) = read_sections(sheet(tmp_path, text, encoding=encoding))
    assert section.file == tmp_path / "ü" / "a.svs"
    assert section.region == (0, 10, 200, 300)
    assert (section.block, section.stain, section.status, section.flip) == ("block", "histology", "ok", "auto")


def test_a_sheet_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "sections.tsv"
    path.write_bytes(b"section\tfile\nM\xfcller\ta.svs\n")
    assert "UTF-8" in problems(path)[0]


def test_commas_in_place_of_tabs(tmp_path: Path) -> None:
    (problem,) = problems(sheet(tmp_path, "section,file,position_mm\na,a.svs,0\n"))
    assert "tab separated" in problem


def test_unknown_columns_are_carried(tmp_path: Path) -> None:
    (section,) = read_sections(sheet(tmp_path, "section\tfile\tposition_mm\tscanner\na\ta.svs\t0\tAT2\n"))
    assert section.extra == {"scanner": "AT2"}


def test_index_needs_a_spacing_and_position_wins(tmp_path: Path) -> None:
    path = sheet(tmp_path, "section\tfile\tposition_mm\tindex\na\ta.svs\t\t3\nb\tb.svs\t7\t4\n")
    assert [s.position_mm for s in read_sections(path, 0.5)] == [1.5, 7.0]
    (problem,) = problems(path)
    assert "row 2" in problem and "section_spacing_mm" in problem


def test_every_problem_of_a_sheet_is_reported_with_its_row(tmp_path: Path) -> None:
    rows = [
        "section\tfile\tposition_mm\tstatus\tregion\tpixel_size_mm\tflip",
        "a\ta.svs\t0\tgood\t\t\t",
        "a\tb.svs\t1\t\t\t\t",
        "c\tc.svs\t1\t\t1,2,3\t\t",
        "d/e\td.svs\t3\t\t\t\t",
        "f\t\t4\t\t\t0,4\tmirrored",
        "g\tg.svs\t\t\t0,0,0,5\t-1\t",
        "h\tg.svs\tnan\t\t\t\t\t\textra",
    ]
    found = problems(sheet(tmp_path, "\n".join(rows) + "\n"))
    expected = [
        ("row 2, column status", "'good'"),
        ("row 3, column section", "'a' stands in row 2"),
        ("row 4, column position_mm", "row 3"),
        ("row 4, column region", "'1,2,3'"),
        ("row 5, column section", "'d/e'"),
        ("row 6, column file", "slide file was expected"),
        ("row 6, column pixel_size_mm", "'0,4'"),
        ("row 6, column flip", "'mirrored'"),
        ("row 7, column position_mm", "neither"),
        ("row 7, column region", "'0,0,0,5'"),
        ("row 7, column pixel_size_mm", "'-1'"),
        ("row 8", "7 cells were expected"),
        ("row 8, column position_mm", "'nan'"),
    ]
    for where, what in expected:
        assert any(f"{tmp_path / 'sections.tsv'}, {where}" in p and what in p for p in found), (where, what)
    assert len(found) == len(expected)


def test_a_missing_section_needs_no_file_and_an_excluded_one_may_repeat_a_position(tmp_path: Path) -> None:
    text = "section\tfile\tposition_mm\tstatus\na\t\t0\tmissing\nb\tb.svs\t1\t\nb2\tb2.svs\t1\texcluded\n"
    assert [s.is_used for s in read_sections(sheet(tmp_path, text))] == [False, True, False]


def test_one_position_in_two_blocks_is_no_repeat(tmp_path: Path) -> None:
    text = "section\tfile\tposition_mm\tblock\na\ta.svs\t1\tleft\nb\tb.svs\t1\tright\n"
    assert len(read_sections(sheet(tmp_path, text))) == 2


def test_a_header_alone_or_no_file_at_all(tmp_path: Path) -> None:
    assert "at least one row" in problems(sheet(tmp_path, "section\tfile\n"))[0]
    assert "cannot be read" in problems(tmp_path / "nothing.tsv")[0]


def test_missing_and_repeated_columns(tmp_path: Path) -> None:
    found = problems(sheet(tmp_path, "section\tstain\tstain\na\tx\ty\n"))
    assert any("'file' is missing" in p for p in found) and any("'stain' stands there twice" in p for p in found)


def test_blocks_without_mri_and_a_mask_without_mri(tmp_path: Path) -> None:
    path = sheet(tmp_path, "block\tmri\tmirror\tmri_mask\nb\t\t\t\n", "blocks.tsv")
    assert read_blocks(path) == (Block("b"),)
    with pytest.raises(InputError, match="without an MRI"):
        read_blocks(sheet(tmp_path, "block\tmri\tmri_mask\nb\t\tm.nii\n", "blocks.tsv"))


def test_landmarks_leave_ras_at_the_door(tmp_path: Path) -> None:
    text = "name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\np\ta\t10\t20\t1\t2\t3\n"
    (mark,) = read_landmarks(sheet(tmp_path, text, "landmarks.tsv"))
    assert mark.point_px == (20, 10)
    assert mark.mri_mm == (3, -2, -1)  # (z, y, x) LPS


def test_records_survive_json(tmp_path: Path) -> None:
    text = "section\tfile\tposition_mm\tregion\tblockface\tlab\na\ta.svs\t0\t1,2,3,4\tp.png\tx\nb\t\t1\t\t\t\n"
    sections = read_sections(sheet(tmp_path, text.replace("b\t\t1", "b\tb.svs\t1")))
    assert tuple(section_from_dict(json.loads(json.dumps(section_to_dict(s)))) for s in sections) == sections
    block = Block("b", tmp_path / "m.nii.gz", None, 0.05, "auto")
    assert block_from_dict(json.loads(json.dumps(block_to_dict(block)))) == block


def test_sections_to_be_found_on_a_slide_know_their_number(tmp_path: Path) -> None:
    rows = [
        "section\tfile\tposition_mm\tregion",
        "a\tx.tif\t1\tauto:1",
        "b\tx.tif\t2\tauto:3",
        "c\ty.tif\t3\tauto:2/6",
        "d\tz.tif\t4\tauto",
    ]
    path = tmp_path / "sections.tsv"
    path.write_text("\n".join(rows) + "\n")
    sections = read_sections(path)
    assert [s.auto_region for s in sections] == [(1, 3), (3, 3), (2, 6), (1, 1)]
    assert all(s.region is None for s in sections)
    assert section_from_dict(json.loads(json.dumps(section_to_dict(sections[2])))) == sections[2]


@pytest.mark.parametrize("cell", ["auto:0", "auto:x", "auto:3/2", "automatic", "auto:1/"])
def test_a_region_that_cannot_be_found_says_how_to_write_it(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "sections.tsv"
    path.write_text(f"section\tfile\tposition_mm\tregion\na\tx.tif\t1\t{cell}\n")
    with pytest.raises(InputError, match="auto:K/N"):
        read_sections(path)


def test_one_place_on_a_slide_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sections.tsv"
    path.write_text("section\tfile\tposition_mm\tregion\na\tx.tif\t1\tauto:2\nb\tx.tif\t2\tauto:2\n")
    with pytest.raises(InputError, match="stands in row 2 already"):
        read_sections(path)
