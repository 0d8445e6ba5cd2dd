"""A volume that several jobs fill: nothing is lost, and the bytes are those of one job."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from histomri.core import Block
from histomri.io.placements import read_placements
from histomri.io.publish import content_files, content_sha256
from histomri.io.volumes import tiles
from histomri.stages.parts import CURRENT, Parts, share
from histomri.stages.resample import ResampleSettings, VolumePlan, plan_volume, resample_volume
from histomri.stages.resample_parts import make_empty, write_part

CHOICE = ("mri", "histology")
SETTINGS = ResampleSettings(chunk_px=8)
# two processes, so many threads in each, all let go at once
PROCESSES, THREADS = 2, 128


def _studies() -> Any:
    spec = importlib.util.spec_from_file_location("histomri_resample_studies", Path(__file__).with_name("test_resample_stage.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _studies().Study(tmp_path_factory.mktemp("study"))


def plan_of(study: Any, settings: ResampleSettings = SETTINGS) -> VolumePlan:
    placements = read_placements(study.folder / "placements.json")
    return plan_volume(study.sections, study.manifests, Block("b", study.folder / "mri.nii.gz"), placements, CHOICE, settings)


def finish(study: Any, folder: Path, parts: Parts | None, settings: ResampleSettings = SETTINGS) -> dict[str, Any]:
    """The volume with all that belongs to it, and its manifest."""
    names = [folder / n for n in ("v.ome.zarr", "v.nii.gz", "c.nii.gz", "v.json")]
    block = Block("b", study.folder / "mri.nii.gz")
    placements = study.folder / "placements.json"
    resample_volume(study.sections, study.manifests, block, placements, *CHOICE, settings, *names, parts)
    content: dict[str, Any] = json.loads(names[3].read_text())
    return content


@pytest.fixture(scope="module")
def by_one(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    finish(study, folder, None)
    return folder


def same_bytes(a: Path, b: Path) -> bool:
    files = [content_files(folder / "v.ome.zarr") for folder in (a, b)]
    return [n for n, _ in files[0]] == [n for n, _ in files[1]] and all(
        x.read_bytes() == y.read_bytes() for (_, x), (_, y) in zip(*files, strict=True)
    )


@pytest.mark.parametrize("parts", [1, 2, 7, 40])
def test_any_number_of_jobs_gives_the_bytes_of_one(study: Any, by_one: Path, tmp_path: Path, parts: int):
    """40 is more than there are chunks: some jobs have nothing to do."""
    working, plan = tmp_path / "v.filling", plan_of(study)
    make_empty(plan, CHOICE, working)
    assert len(list(tiles(plan.grid.shape, plan.chunk))) == 18
    done = tuple(tmp_path / f"{n}.json" for n in range(parts))
    for n in reversed(range(parts)):
        write_part(plan, CHOICE, working, (n, parts), done[n])
    record = finish(study, tmp_path, Parts(working, done))
    assert same_bytes(by_one, tmp_path)
    assert record == json.loads((by_one / "v.json").read_text())
    assert record["content_sha256"] == content_sha256(tmp_path / "v.ome.zarr")
    assert (working / CURRENT).is_file(), "a job that is killed now must find all of it again"


def test_every_chunk_belongs_to_one_job_and_is_one_file(study: Any, by_one: Path):
    boxes = list(tiles(plan_of(study).grid.shape, (8, 8, 8)))
    for parts in (1, 2, 3, 5, 64, 500):
        shares = [list(share(boxes, n, parts)) for n in range(parts)]
        assert list(itertools.chain(*shares)) == boxes
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    metadata = json.loads((by_one / "v.ome.zarr" / "0" / "zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"][1:] == [8, 8, 8]
    assert "sharding_indexed" not in json.dumps(metadata["codecs"])


WRITERS = """
import importlib.util, pickle, sys, threading
from pathlib import Path
spec = importlib.util.spec_from_file_location("parts_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.write_at_once(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
"""


def write_at_once(study: Path, folder: Path, first: int, every: int) -> None:
    """Some of the parts, each by a thread of its own, all let go at once when a line is read."""
    studies = _studies()
    reader = studies.Study.__new__(studies.Study)
    reader.folder = study
    reader.sections = [studies.Section(f"s{i}", Path("x"), 1.0 + studies.SPACING * i, "b") for i in range(5)]
    reader.manifests = {s.id: study / "ingest" / s.id / "manifest.json" for s in reader.sections}
    plan, parts = plan_of(reader, ResampleSettings(chunk_px=8)), PROCESSES * THREADS
    gate, failed = threading.Barrier(THREADS), []

    def write(n: int) -> None:
        gate.wait()
        try:
            write_part(plan, CHOICE, folder / "v.filling", (n, parts), folder / f"{n}.json")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(first, parts, every)]
    print("ready", flush=True)
    sys.stdin.readline()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    sys.exit(f"{failed}" if failed else 0)


def test_hundreds_of_writers_at_once_lose_nothing(tmp_path: Path):
    """256 writers at once in two processes, 512 chunks; two writers in one chunk or shard would lose voxels without an error."""
    studies = _studies()
    study = studies.Study(tmp_path / "study")
    fine = studies.Image(studies.Grid((64, 64, 64), 0.0625, [0.6, 0.1, 0.2]), studies.np.ones((64, 64, 64), studies.np.uint8))
    studies.write_nifti(study.folder / "mri.nii.gz", fine)
    finish(study, tmp_path / "one", None)
    plan = plan_of(study)
    make_empty(plan, CHOICE, tmp_path / "v.filling")
    command = [sys.executable, "-c", WRITERS, __file__, str(study.folder), str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(p), str(PROCESSES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for p in range(PROCESSES)
    ]
    for w in writers:
        assert w.stdout is not None
        assert w.stdout.readline() == "ready\n"
    for w in writers:
        w.communicate("go\n", timeout=100)
    assert [w.returncode for w in writers] == [0] * PROCESSES
    done = tuple(tmp_path / f"{n}.json" for n in range(PROCESSES * THREADS))
    finish(study, tmp_path, Parts(tmp_path / "v.filling", done))
    assert len(list(tiles(plan.grid.shape, plan.chunk))) == 512
    assert same_bytes(tmp_path / "one", tmp_path)


def test_a_part_that_is_missing_or_of_an_earlier_making_is_no_volume(study: Any, tmp_path: Path):
    working, plan = tmp_path / "v.filling", plan_of(study)
    done = (tmp_path / "0.json", tmp_path / "1.json")
    make_empty(plan, CHOICE, working)
    write_part(plan, CHOICE, working, (0, 2), done[0])
    make_empty(plan, CHOICE, working)
    write_part(plan, CHOICE, working, (1, 2), done[1])
    with pytest.raises(RuntimeError, match=r"these are there: \[1\]"):
        finish(study, tmp_path, Parts(working, done))
    assert not (tmp_path / "v.ome.zarr").exists()
