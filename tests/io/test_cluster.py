"""Jobs left in a cluster's queue are ended before another run begins, and a cluster that cannot be asked is no empty one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from histomri.core import InputError
from histomri.io.cluster import RECORD, end_left_over, record_run, recorded_runs

SQUEUE = """#!/bin/sh
echo "$@" >> {folder}/asked
cat {folder}/queue
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled
: > {folder}/queue
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of two scripts: what stands in the file is in its queue."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "queue"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An output folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_the_jobs_of_all_earlier_runs_are_cancelled_and_waited_for(queue: Path, study: Path):
    record_run(study, "run-a")
    record_run(study, "run-b")
    queue.write_text("7|RUNNING|me\n8|PENDING|me\n")
    assert end_left_over(study) == 2
    assert queue.with_name("cancelled").read_text() == "7 8\n"
    assert "--name=run-a,run-b" in queue.with_name("asked").read_text()
    assert not (study / RECORD).exists()


def test_a_folder_that_never_saw_a_cluster_asks_for_none(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert end_left_over(study) == 0


def test_without_squeue_nobody_knows_and_the_run_is_refused(study: Path, monkeypatch: pytest.MonkeyPatch):
    record_run(study, "run-a")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="there is no squeue here"):
        end_left_over(study)
    assert recorded_runs(study) == ["run-a"]


def test_a_cluster_that_does_not_answer_is_no_empty_one(queue: Path, study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("histomri.io.cluster.time.sleep", lambda s: None)
    record_run(study, "run-a")
    queue.with_name("squeue").write_text("#!/bin/sh\necho unable to contact the controller >&2\nexit 1\n")
    with pytest.raises(InputError, match="unable to contact the controller"):
        end_left_over(study)


def test_a_copy_of_a_study_leaves_the_jobs_of_the_first_alone(queue: Path, study: Path, tmp_path: Path):
    record_run(study, "run-a")
    copy = Path(shutil.copytree(study, tmp_path / "copy"))
    queue.write_text("7|RUNNING|me\n")
    assert end_left_over(copy) == 0
    assert queue.read_text()


DAMAGED = ["", '{"folder": "/o', "\0\0\0", "[]", '{"folder": "/o", "runs": "run-a"}', '{"folder": "/o", "runs": [3]}']


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_stops_the_run_in_words_and_is_kept(queue: Path, study: Path, damage: str):
    (study / RECORD).write_text(damage)
    for act in (end_left_over, recorded_runs, lambda folder: record_run(folder, "run-b")):
        with pytest.raises(InputError, match=r"is damaged .*squeue --me.* remove"):
            act(study)
    assert (study / RECORD).read_text() == damage


def test_a_record_is_on_the_disk_before_it_takes_its_name(study: Path, monkeypatch: pytest.MonkeyPatch):
    """What a machine that goes down leaves: the names that were on the disk, with the content that was."""
    on_disk: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        on_disk.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        assert on_disk == [self.name]
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    record_run(study, "run-a")
    assert on_disk == [f"{RECORD}.new", study.name]
