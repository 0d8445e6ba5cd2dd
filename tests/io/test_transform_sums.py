"""Transforms of a results folder that are not what the study wrote never reach ITK in this process."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk  # noqa: N813

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from study import make_study

from histomri.cli import main
from histomri.core import InputError
from histomri.io import transform_sums
from histomri.io.checksums import checksums, decoded
from histomri.io.transform_sums import SUMS, read_published
from histomri.stages.reproduction import result_differences


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A study that ran."""
    return make_study(tmp_path)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that would be tried in a process of their own, which takes a while."""
    found: list[str] = []
    monkeypatch.setattr(transform_sums, "fails_in_itk", lambda path: bool(found.append(path.name)))
    return found


def forward(config: Path) -> Path:
    return config.parent / "out" / "transforms" / "b" / "block_to_a.h5"


def break_it(file: Path) -> None:
    """What follows is not where the file says; where it is read, HDF5 goes there without looking and ends the process."""
    data = file.read_bytes()
    file.write_bytes(data[:3980] + bytes(200) + data[3980:])


def mapped(config: Path, folder: Path) -> int:
    (folder / "in.csv").write_text("x,y\n10,20\n")
    arguments = ["--from", "section:a", "--to", "mri", str(folder / "in.csv"), "--output", str(folder / "out.csv")]
    return main(["map", "--config", str(config), *arguments])


def test_a_transform_that_was_tampered_with_is_refused_unread(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mapped(config, tmp_path) == 0
    data = bytearray(forward(config).read_bytes())
    data[-100] ^= 1
    forward(config).write_bytes(data)
    monkeypatch.setattr(sitk, "ReadTransform", lambda *_: pytest.fail("it was read"))
    assert mapped(config, tmp_path) == 2
    said = capsys.readouterr().err
    assert str(forward(config)) in said and "is not what the study wrote" in said and "run the study again" in said
    with pytest.raises(InputError, match="is not what the study wrote"):
        checksums(forward(config))


def test_a_sound_file_of_an_older_result_is_tried_and_read(config: Path, tmp_path: Path, tried: list[str]) -> None:
    assert mapped(config, tmp_path) == 0 and tried == []
    (forward(config).parents[1] / SUMS).unlink()
    assert mapped(config, tmp_path) == 0 and "block_to_a.h5" in tried


def test_a_damaged_file_of_an_older_result_ends_a_process_of_its_own(config: Path, tmp_path: Path) -> None:
    (forward(config).parents[1] / SUMS).unlink()
    break_it(forward(config))
    assert mapped(config, tmp_path) == 2
    with pytest.raises(InputError, match="the file is damaged"):
        list(decoded(forward(config)))


def test_a_file_that_the_record_does_not_name_is_tried_first(config: Path, tried: list[str]) -> None:
    sums = forward(config).parents[1] / SUMS
    sums.write_text("\n".join(line for line in sums.read_text().splitlines() if "block_to_a" not in line))
    read_published(forward(config))
    read_published(forward(config).with_name("a_to_block.h5"))
    assert tried == ["block_to_a.h5"]


@pytest.mark.parametrize("text", ["", "\n\n", "nothing", "\xff\xfe", "0" * 10_000])
def test_a_record_that_is_none_is_no_leave_to_read(config: Path, tried: list[str], text: str) -> None:
    (forward(config).parents[1] / SUMS).write_text(text, encoding="latin-1")
    read_published(forward(config))
    assert tried == ["block_to_a.h5"]


def test_a_comparison_of_results_says_what_cannot_be_compared(config: Path, tmp_path: Path) -> None:
    out, name = config.parent / "out", "transforms/b/block_to_a.h5"
    records: list[dict[str, Any]] = [{"outputs": {name: {"arrays": {"0.matrix": {"sha256": n}}}}} for n in range(2)]
    break_it(forward(config))
    said = list(result_differences(*records, (out, out)))
    assert len(said) == 1 and "is not what the study wrote" in said[0]


def test_the_record_is_one_that_sha256sum_checks(config: Path) -> None:
    folder = forward(config).parents[1]
    names = sorted(p.relative_to(folder).as_posix() for p in (folder / "b").iterdir())
    lines = (folder / SUMS).read_text().splitlines()
    assert lines == [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=False)
    assert done.returncode == 0
