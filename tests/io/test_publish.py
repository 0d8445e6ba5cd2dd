"""Results appear whole or not at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from histomri.io.atomic import write_json
from histomri.io.publish import OvertakenError, back_from_future, content_sha256, whole


def make_store(folder: Path, text: str) -> None:
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "zarr.json").write_text(text)


def test_half_written_store_is_never_published(tmp_path: Path) -> None:
    store = tmp_path / "a.ome.zarr"
    with pytest.raises(RuntimeError), whole(store) as partial:
        make_store(partial, "half")
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_store(tmp_path: Path) -> None:
    store = tmp_path / "a.ome.zarr"
    make_store(store, "old")
    with pytest.raises(RuntimeError), whole(store) as partial:
        make_store(partial, "half")
        raise RuntimeError("killed")
    assert (store / "0" / "zarr.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_a_new_store_replaces_the_old_one_and_the_leftover_of_a_killed_run(tmp_path: Path) -> None:
    store = tmp_path / "a.ome.zarr"
    make_store(store, "old")
    (store / "stale").write_text("chunk of the old store")
    make_store(tmp_path / "a.ome.zarr.partial", "left over")
    with whole(store) as partial:
        assert not partial.exists()
        make_store(partial, "new")
    assert sorted(p.relative_to(store).as_posix() for p in store.rglob("*")) == ["0", "0/zarr.json"]
    assert (store / "0" / "zarr.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_a_writer_that_was_given_up_for_lost_can_publish_neither_over_nor_into_what_its_successor_wrote(tmp_path: Path) -> None:
    """A node that a cluster lost may go on working; the job that took its place owns the store."""
    store = tmp_path / "a.ome.zarr"
    with pytest.raises(OvertakenError), whole(store) as lost:
        make_store(lost, "half of the lost one")
        with whole(store) as successor:
            assert successor != lost and not lost.exists()
            make_store(successor, "whole")
            # as Zarr does, it makes its folders anew
            make_store(lost, "the other half of the lost one")
    assert (store / "0" / "zarr.json").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_a_writer_overtaken_while_the_other_is_still_at_work_leaves_it_alone(tmp_path: Path) -> None:
    store = tmp_path / "a.ome.zarr"
    lost = whole(store)
    make_store(lost.__enter__(), "lost")
    with whole(store) as successor:
        make_store(successor, "whole")
        with pytest.raises(OvertakenError):
            lost.__exit__(None, None, None)
        assert not store.exists()
    assert (store / "0" / "zarr.json").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_left_overs_of_another_store_with_a_longer_name_stay(tmp_path: Path) -> None:
    with whole(tmp_path / "a.b") as other:
        other.write_text("b")
        with whole(tmp_path / "a") as partial:
            partial.write_text("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.b"]


def test_hash_sees_every_byte_and_name_but_not_snakemakes_mark(tmp_path: Path) -> None:
    stores = [tmp_path / name for name in "abc"]
    for store in stores:
        make_store(store, "same")
    first = content_sha256(stores[0])
    (stores[1] / ".snakemake_timestamp").touch()
    assert content_sha256(stores[1]) == first
    (stores[2] / "0" / "zarr.json").rename(stores[2] / "zarr.json")
    assert content_sha256(stores[2]) != first
    (stores[1] / "0" / "zarr.json").write_text("samf")
    assert content_sha256(stores[1]) != first


def test_missing_store_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content_sha256(tmp_path / "none")


def test_json_keeps_every_bit_and_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": np.float64(1) / 3, "ä": [np.float32(0.1), np.nan], "at": tmp_path / "b"})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == {"x": 1 / 3, "ä": [float(np.float32(0.1)), None], "at": (tmp_path / "b").as_posix()}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_results_that_a_fast_clock_dated_to_the_future_get_the_present_time(tmp_path: Path) -> None:
    late = [tmp_path / "ingest" / "a" / "manifest.json", tmp_path / "transforms" / "b.ome.zarr" / ".snakemake_timestamp"]
    left_alone = [tmp_path / "stack" / "order.json", tmp_path / "transforms" / "b.ome.zarr" / "zarr.json"]
    for file in (*late, *left_alone):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    tomorrow, yesterday = time.time() + 86400, time.time() - 86400
    for file in (*late, left_alone[1]):
        os.utime(file, (tomorrow, tomorrow))
    os.utime(left_alone[0], (yesterday, yesterday))
    assert sorted(back_from_future(tmp_path)) == late
    assert all(file.stat().st_mtime <= time.time() for file in late)
    assert left_alone[0].stat().st_mtime == pytest.approx(yesterday) and left_alone[1].stat().st_mtime == pytest.approx(tomorrow)
