"""What a person gives by hand is checked before anything is computed, and each fault is named with its place and remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histomri.cli import main
from histomri.core import Grid, InputError
from histomri.io.by_hand import read_lock, read_pose, read_rough
from histomri.io.check import check_study
from histomri.io.config import load_study
from histomri.io.placements import read_placements, write_placements
from histomri.io.sheets import guide_from_dict, guide_to_dict, parse_guides
from histomri.io.transform_files import write_affine, write_chain
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

CONFIG = "study: s\nsections: sections.tsv\nblocks: blocks.tsv\noutput: results\npixel_size_mm: 0.05\nguides: guides.tsv\n"
HEADER = "section\tx\ty\tmri_x\tmri_y\tmri_z\tto_section\tto_x\tto_y\n"
TO_MRI = "a\t10\t20\t1\t2\t3\t\t\t\na\t200\t150\t9\t2\t3\t\t\t\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two sections of 300 x 200 pixels in block b (with an MRI, which is never opened here), one in block c without."""
    for name in "abc":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)).save(tmp_path / f"{name}.png")
    write(tmp_path, "sections.tsv", "section\tfile\tblock\tposition_mm\na\ta.png\tb\t0\nb\tb.png\tb\t0.5\nc\tc.png\tc\t0\n")
    write(tmp_path, "blocks.tsv", "block\tmri\nb\tmri.nii.gz\nc\t\n")
    write(tmp_path, "config.yaml", CONFIG)
    write(tmp_path, "guides.tsv", HEADER + TO_MRI)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def refused(study: Path) -> str:
    with pytest.raises(InputError) as error:
        load_study(study / "config.yaml")
    return str(error.value)


def test_guides_leave_ras_at_the_door_and_survive_a_rules_params(study: Path) -> None:
    write(study, "guides.tsv", HEADER + TO_MRI + "b\t1\t2\t\t\t\ta\t3\t4\nb\t9\t9\t\t\t\ta\t5\t6\n")
    first, _, third, _ = load_study(study / "config.yaml").guides
    assert (first.section, first.point_px, first.mri_mm) == ("a", (20.0, 10.0), (3.0, -2.0, -1.0))
    assert (third.to_section, third.to_px, third.mri_mm) == ("a", (4.0, 3.0), None)
    assert [guide_from_dict(guide_to_dict(g)) for g in parse_guides(study / "guides.tsv").checked()] == list(
        parse_guides(study / "guides.tsv").checked()
    )


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("z\t1\t2\t1\t2\t3\t\t\t\nz\t9\t9\t1\t2\t3\t\t\t\n", "there is no section 'z'"),
        ("a\t1\t2\t\t\t\tz\t1\t1\na\t9\t9\t\t\t\tz\t1\t1\n", "there is no section 'z'"),
        ("a\t1\t2\t1\t2\t3\t\t\t\n", "one guide to the MRI, at least 2 are needed"),
        ("a\t1\t2\t1\t2\t3\t\t\t\na\t9\t9\t\t\t\tb\t1\t1\n", "one guide to section b, at least 2"),
        ("a\t1\t2\t1\t2\t3\t\t\t\na\t1\t2\t1\t2\t4\t\t\t\n", "are at one place"),
        ("a\t1\t2\t\t\t\ta\t1\t1\na\t9\t9\t\t\t\ta\t1\t1\n", "cannot guide itself"),
        ("a\t1\t2\t\t\t\tc\t1\t1\na\t9\t9\t\t\t\tc\t1\t1\n", "belongs to another block"),
        ("c\t1\t2\t1\t2\t3\t\t\t\nc\t9\t9\t1\t2\t3\t\t\t\n", "block 'c' has no MRI"),
        ("a\t1\t2\t\t\t\t\t\t\na\t9\t9\t1\t2\t3\t\t\t\n", "neither is filled in"),
        ("a\t1\t2\t1\t2\t3\tb\t1\t1\na\t9\t9\t1\t2\t3\t\t\t\n", "both are filled in"),
        ("a\t1\t2\t1\t\t3\t\t\t\na\t9\t9\t1\t2\t3\t\t\t\n", "the cell is empty"),
    ],
)
def test_guides_that_cannot_be_used(study: Path, rows: str, what: str) -> None:
    write(study, "guides.tsv", HEADER + rows)
    said = refused(study)
    assert what in said and "guides.tsv, row 2" in said


def test_check_finds_points_outside_of_their_slide(study: Path) -> None:
    write(study, "guides.tsv", HEADER + "a\t10\t20\t\t\t\tb\t3\t4\na\t300\t20\t\t\t\tb\t50\t200\n")
    said = [str(p) for p in check_study(study / "config.yaml") if "guides.tsv" in p.where]
    assert len(said) == 2
    assert "row 3 (section a): x 300, y 20 lies outside" in said[0] and "row 3 (section b): x 50, y 200" in said[1]


def statuses(study: Path, a: str = "ok", b: str = "ok", columns: str = "", cells: tuple[str, str] = ("", "")) -> None:
    """The sheet with the status of sections a and b, and further columns of both."""
    head = "\t".join(["section", "file", "block", "position_mm", "status", *columns.split()])
    rows = [
        "\t".join([n, f"{n}.png", "b", p, s, *c.split()]) for n, p, s, c in zip("ab", ("0", "0.5"), (a, b), cells, strict=True)
    ]
    write(study, "sections.tsv", "\n".join([head, *rows, "c\tc.png\tc\t0\tok"]) + "\n")


@pytest.mark.parametrize("status", ["excluded", "missing"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_guide_from_or_to_a_section_that_takes_no_part_is_refused(study: Path, name: str, status: str) -> None:
    write(study, "guides.tsv", HEADER + "b\t10\t20\t\t\t\ta\t3\t4\nb\t90\t20\t\t\t\ta\t50\t20\n")
    statuses(study)
    assert len(load_study(study / "config.yaml").guides) == 2
    statuses(study, **{name: status})
    column = "to_section" if name == "a" else "section"
    assert f"row 2 (section b), column {column}: section {name} is {status}, so this guide would do nothing" in refused(study)


def test_a_transform_or_lock_of_a_section_that_takes_no_part_is_refused(study: Path) -> None:
    (study / "guides.tsv").write_text(HEADER + "a\t10\t20\t1\t2\t3\t\t\t\na\t90\t20\t1\t2\t3\t\t\t\n")
    write_affine(study / "t.tfm", Affine(np.eye(3)))
    columns = "transform transform_from"
    statuses(study, columns=columns, cells=("", "t.tfm a"))
    assert load_study(study / "config.yaml").section("b").transform_from == "a"
    statuses(study, b="excluded", columns=columns, cells=("", "t.tfm a"))
    assert "section b, column transform: the section is excluded, so its transform would do nothing" in refused(study)
    (study / "config.yaml").write_text(CONFIG.replace("guides: guides.tsv\n", ""))
    statuses(study, a="missing", columns=columns, cells=("", "t.tfm a"))
    assert "section b, column transform_from: section a is missing, so this transform would do nothing" in refused(study)
    statuses(study, a="excluded", columns="lock", cells=("locks/none.json", ""))
    said = refused(study)
    assert "section a, column lock: the section is excluded, so its lock would do nothing" in said
    assert "no such file" not in said, "one fault is said once"


def test_check_warns_of_a_hint_that_nothing_is_compared_with(study: Path) -> None:
    def warned() -> list[str]:
        return [str(p) for p in check_study(study / "config.yaml") if "rotation_deg" in p.where]

    statuses(study, columns="rotation_deg", cells=("30", ""))
    (said,) = warned()
    assert said.startswith("warning") and "section a, column rotation_deg: it is the only one of its block" in said
    statuses(study, columns="rotation_deg", cells=("30", "60"))
    assert warned() == []
    statuses(study, columns="rotation_deg blockface", cells=("30 c.png", ""))
    assert warned() == []


@pytest.mark.parametrize("column", ["mri", "mri_mask"])
def test_the_remedy_of_a_lost_mri_is_not_that_of_a_lost_slide(study: Path, column: str) -> None:
    write(study, "blocks.tsv", "block\tmri\tmri_mask\nb\tmri.nii.gz\tmask.nii.gz\nc\t\t\n")
    (problem,) = [p for p in check_study(study / "config.yaml") if p.where.endswith(f"column {column}")]
    assert "no such file" in problem.what and problem.remedy == "correct the path, or empty the cell"
    (study / "a.png").unlink()
    (slide,) = [p for p in check_study(study / "config.yaml") if "row 2 (section a)" in p.where and "sections.tsv" in p.where]
    assert "mark the section as missing" in slide.remedy


def with_transform(study: Path, file: str, other: str) -> None:
    text = (
        f"section\tfile\tblock\tposition_mm\ttransform\ttransform_from\na\ta.png\tb\t0\t\t\nb\tb.png\tb\t0.5\t{file}\t{other}\n"
    )
    write(study, "sections.tsv", text + "c\tc.png\tc\t0\t\t\n")


@pytest.mark.parametrize(
    ("scale", "file", "other", "what"),
    [
        (1.0, "t.tfm", "z", "there is no section 'z'"),
        (1.0, "t.tfm", "c", "another section of block 'b' was expected"),
        (1.0, "t.tfm", "b", "another section of block 'b' was expected"),
        (1.0, "t.tfm", "", "go together, this one is empty"),
        (1.0, "", "a", "go together, this one is empty"),
        (1.0, "none.tfm", "a", "no such file"),
        (20.0, "t.tfm", "a", "it scales by 20 to 20"),
        (1.0, "a.png", "a", "cannot be read as an ITK transform"),
    ],
)
def test_rough_transforms_that_cannot_be_used(study: Path, scale: float, file: str, other: str, what: str) -> None:
    write_affine(study / "t.tfm", Affine(np.diag([scale, scale, 1.0])))
    with_transform(study, file, other)
    said = refused(study)
    assert what in said and "section b, column transform" in said


def test_a_rough_transform_is_read_as_register_writes_it(study: Path) -> None:
    matrix = np.array([[0.0, 1.0, 4.0], [-1.0, 0.0, 7.0], [0, 0, 1]])
    write_affine(study / "t.tfm", Affine(matrix))
    np.testing.assert_allclose(read_rough(study / "t.tfm").map(np.array([1.0, 2.0])), Affine(matrix).map([1.0, 2.0]), atol=1e-12)
    with pytest.raises(InputError, match="a 2D transform was expected"):
        write_affine(study / "three.tfm", Affine(np.eye(4)))
        read_rough(study / "three.tfm")


@pytest.mark.parametrize(
    ("pose", "mirror", "what"),
    [
        (np.eye(3), "no", "a 3D affine was expected"),
        (np.diag([9.0, 9, 9, 1]), "no", "it scales by 9 to 9"),
        (np.diag([1.0, 1, -1, 1]), "no", "it makes the block a mirror image of its MRI"),
        (np.eye(4), "yes", "it makes the block no mirror image"),
    ],
)
def test_poses_that_cannot_be_used(study: Path, pose: np.ndarray, mirror: str, what: str) -> None:
    write_affine(study / "pose.tfm", Affine(pose))
    write(study, "blocks.tsv", f"block\tmri\tmirror\tpose\nb\tmri.nii.gz\t{mirror}\tpose.tfm\nc\t\t\t\n")
    said = refused(study)
    assert what in said and "block b, column pose" in said


def test_a_pose_is_read_and_one_without_an_mri_refused(study: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = [1.0, 2.0, 3.0]
    write_affine(study / "pose.tfm", Affine(matrix))
    write(study, "blocks.tsv", "block\tmri\tpose\nb\tmri.nii.gz\tpose.tfm\nc\t\t\n")
    np.testing.assert_allclose(read_pose(load_study(study / "config.yaml").block("b")).matrix, matrix, atol=1e-12)
    write(study, "blocks.tsv", "block\tmri\tpose\nb\tmri.nii.gz\t\nc\t\tpose.tfm\n")
    assert "a pose is given without an MRI" in refused(study)


def test_the_pose_of_a_finished_run_is_its_affine_where_its_planes_were_bent(study: Path) -> None:
    matrix = np.diag([1.1, 1.0, 0.9, 1.0])
    bend = DisplacementField(Grid((2, 2, 2), 9.0), 0.1 * np.ones((2, 2, 2, 3)))
    write_chain(study / "pose.h5", bend @ Affine(matrix))
    write(study, "blocks.tsv", "block\tmri\tpose\nb\tmri.nii.gz\tpose.h5\nc\t\t\n")
    np.testing.assert_allclose(read_pose(load_study(study / "config.yaml").block("b")).matrix, matrix, atol=1e-12)
    write_chain(study / "pose.h5", Affine(matrix) @ bend)
    assert "a 3D affine was expected" in refused(study)


FIELD = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)


def results(study: Path) -> Placements:
    """Placements of block b as its stage mri leaves them: a is placed, b is not."""
    field = DisplacementField(Grid((4, 5), 1.0), FIELD, "block:b", "block:b")
    affine = Affine(np.array([[0.1, 0.9, 1 / 3], [1.0, 0.1, 2.0], [0, 0, 1]]), "block:b", "section:a")
    pose = Affine(np.diag([1.1, 1.2, 0.9, 1]), "mri", "block:b")
    found = Placements("b", {"a": Placement("a", 0.0, affine, field), "b": Placement("b", 0.5, None)}, pose)
    write_placements(study / "results" / "mri" / "b" / "placements.json", found)
    return found


def locked(study: Path, position: str = "0", file: str = "locks/a.json") -> None:
    text = f"section\tfile\tblock\tposition_mm\tlock\na\ta.png\tb\t{position}\t{file}\nb\tb.png\tb\t0.5\t\nc\tc.png\tc\t0\t\n"
    write(study, "sections.tsv", text)


def test_lock_writes_the_place_of_a_finished_run_to_the_last_bit(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(study, "guides.tsv", HEADER + "b\t1\t2\t\t\t\ta\t3\t4\nb\t9\t9\t\t\t\ta\t5\t6\n")
    before = results(study)
    assert main(["lock", str(study / "config.yaml"), "a"]) == 0
    assert "section a: write into its column lock: locks/a.json" in capsys.readouterr().out
    locked(study)
    place, record = read_lock(load_study(study / "config.yaml").section("a"))
    np.testing.assert_array_equal(place.affine.matrix, before.sections["a"].affine.matrix)
    np.testing.assert_array_equal(place.field.values, FIELD)
    np.testing.assert_array_equal(record.mri_to_block.matrix, before.mri_to_block.matrix)
    assert set(read_placements(study / "locks" / "a.json").sections) == {"a"}


def test_locks_that_cannot_be_written_or_used(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(study / "config.yaml")
    assert main(["lock", config, "a"]) == 2
    results(study)
    assert main(["lock", config, "z"]) == 2
    assert "there is no section 'z'" in capsys.readouterr().err
    assert main(["lock", config, "b"]) == 2
    assert "no place that could be kept" in capsys.readouterr().err
    assert main(["lock", config, "a"]) == 0
    locked(study)
    assert "it is locked and has guides too" in refused(study)
    write(study, "guides.tsv", HEADER + "b\t1\t2\t\t\t\ta\t3\t4\nb\t9\t9\t\t\t\ta\t5\t6\n")
    locked(study, position="0.25")
    said = refused(study)
    assert "the sheet has it in b at 0.25 mm -> put back 0 mm in block b; or empty this cell, run, then lock it again" in said
    locked(study, file="locks/none.json")
    said = refused(study)
    assert "section a, column lock" in said and "no such file -> correct the path; or empty this cell" in said
    (study / "locks" / "b.json").write_bytes((study / "locks" / "a.json").read_bytes())
    (study / "locks" / "b.fields.npy").write_bytes((study / "locks" / "a.fields.npy").read_bytes())
    text = "section\tfile\tblock\tposition_mm\tlock\na\ta.png\tb\t0\t\nb\tb.png\tb\t0.5\tlocks/b.json\nc\tc.png\tc\t0\t\n"
    write(study, "sections.tsv", text)
    assert "the place of b was expected, it holds a" in refused(study)


def test_the_remedy_of_a_lock_that_is_gone_or_spoilt_can_be_followed(study: Path) -> None:
    """`histomri lock` loads the study, which refuses the very lock that is to be written again."""
    (study / "config.yaml").write_text(CONFIG.replace("guides: guides.tsv\n", ""))
    config = str(study / "config.yaml")
    results(study)
    assert main(["lock", config, "a"]) == 0
    locked(study)
    good = (study / "locks" / "a.json").read_text()
    for spoilt in ("a.json", "a.fields.npy"):
        (study / "locks" / spoilt).unlink()
        said = refused(study)
        assert f"locks/{spoilt}: there is no such file -> " in said and said.count("error:") == 1
        assert "empty this cell, then write it again: histomri lock CONFIG a" in said
        locked(study, file="")
        assert main(["lock", config, "a"]) == 0
        locked(study)
        assert load_study(study / "config.yaml").section("a").lock is not None
    (study / "locks" / "a.json").write_text(good[: len(good) // 2])
    said = refused(study)
    assert "a lock was expected, this cannot be read (" in said and said.count("error:") == 1
    assert "empty this cell, then write it again" in said


def test_a_place_at_another_position_than_the_sheets_cannot_be_locked(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "config.yaml").write_text(CONFIG.replace("guides: guides.tsv\n", ""))
    results(study)
    locked(study, position="0.25", file="")
    assert main(["lock", str(study / "config.yaml"), "a"]) == 2
    assert "the last run had it at 0 mm, the sheet has it at 0.25 mm -> run the study first" in capsys.readouterr().err
    assert not (study / "locks").exists()


def test_locks_and_an_unknown_order_are_refused_in_one_sentence_before_any_pair(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = CONFIG.replace("guides: guides.tsv\n", "")
    (study / "config.yaml").write_text(plain)
    results(study)
    assert main(["lock", str(study / "config.yaml"), "a"]) == 0
    locked(study, position="7")  # as moved by the order found: what the lock says of it is no matter
    (study / "config.yaml").write_text(plain + "stack: {order: unknown}\n")
    said = refused(study)
    assert said.count("error:") == 1
    assert "column lock: section a: a lock holds for one position, and stack.order is unknown -> empty the column" in said
    assert [p.where for p in check_study(study / "config.yaml") if "column lock" in p.where] == [
        f"{study / 'sections.tsv'}, column lock"
    ]
    locked(study, file="")
    load_study(study / "config.yaml")
    capsys.readouterr()
    assert main(["lock", str(study / "config.yaml"), "a"]) == 2
    assert "stack.order is unknown" in capsys.readouterr().err
