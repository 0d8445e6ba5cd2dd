"""Spoiled files through every reader, in a process of its own with limits on time and memory.

Each case ends well (``sound`` or ``refused`` in words of ours) or is a failure: another exception, a crash of the interpreter,
a hang, memory far beyond what the file can hold or that ran out on the way, a write outside of ``kept`` and ``out`` beside the
case. ``python -m histomri.testing.fuzz READER CASE`` repeats one case and shows
its traceback.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from histomri.core.errors import HistomriError
from histomri.io.memory import peak_memory_mb
from histomri.testing.fuzz_readers import PREPARE, READERS
from histomri.testing.fuzz_watch import OutsideError, Watch, changes
from histomri.testing.mutants import write_mutant

Case = tuple[str, int]
# of processor time, and of time without a word: on a busy machine a case may wait long
CASE_S = 20
STUCK_S = 240
# address space beyond what the libraries take, and memory that one case may touch (plain pictures are decoded whole)
SPACE_MB, CASE_MB = 4096, 900
SEED = 20261128
# of the folder of cases: where a reader may write, where cases lie, and what nobody may touch, the home of the worker
OWN_FOLDERS = ("kept", "out")
INSIDE, CANARY = "inside", "canary"
LIBRARIES = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"), "1")


# more where the formats are wider; each HDF5 file is read in a process of its own, which takes half a second
SHARES = {
    "tiff": 24,
    "svs": 8,
    "picture": 10,
    "nifti": 12,
    "zarr": 6,
    "transform": 6,
    "config": 6,
    "sections": 6,
    "geojson": 6,
    "hdf5": 1,
    "dicom": 6,
    "photograph": 8,
    "metrics": 2,
    "found_pose": 2,
}


def cases_of(total: int) -> dict[str, int]:
    """How many cases each reader gets of ``total`` (rounded up)."""
    shares = {name: SHARES.get(name, 4) for name in READERS}
    return {name: -(-total * share // sum(shares.values())) for name, share in shares.items()}


# ---------------------------------------------------------------- one case, in the worker


class _TooLongError(BaseException):
    """A case ran over its time; no reader's ``except Exception`` takes it for bad bytes."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLongError


def prepare(folder: Path, seeds: Path, reader: str, case: int) -> Path:
    """The file of a case, in ``folder``."""
    rng = random.Random(f"{SEED}:{reader}:{case}")
    chosen = rng.choice(sorted((seeds / reader).iterdir()))
    target = folder / f"case{''.join(chosen.suffixes)}"
    write_mutant(chosen, target, rng)
    if reader in PREPARE:
        PREPARE[reader](target)
    return target


def outcome_of(reader: str, path: Path, watch: Watch | None = None) -> str:
    """``sound`` or ``refused``, or what went wrong, in a line; without ``watch``, wherever the reader writes."""
    own = [path.parent / name for name in OWN_FOLDERS]
    before, refused = watch.listing(own) if watch else {}, False
    for read in READERS[reader]:
        said = _one_reading(read, path, watch, own)
        if said.startswith("FAILED"):
            return said
        refused = refused or said == "refused"
    if watch and (touched := changes(before, watch.listing(own))):
        return f"FAILED touched {_line(os.path.relpath(touched[0], path.parent))}"
    return "refused" if refused else "sound"


def _one_reading(read: Callable[[Path], None], path: Path, watch: Watch | None, own: Sequence[Path]) -> str:
    before, said = _reset_peak(), "sound"
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        with watch.only(own) if watch else nullcontext():
            read(path)
    except HistomriError as error:
        said = "refused" if str(error).strip() else "FAILED an error without words"
        # memory that ran out is no reason to refuse: what took it was not bounded
        said = "FAILED out of memory, taken for bad input" if ran_out_of_memory(error) else said
    except _TooLongError:
        said = f"FAILED longer than {CASE_S} s"
    except OutsideError:
        said = "FAILED"
    except BaseException as error:
        said = _failed(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if watch and watch.seen:  # also where somebody caught it
        return f"FAILED wrote outside: {_line(watch.seen[0])}"
    grown = peak_memory_mb() - before
    return f"FAILED took {grown:.0f} MB" if grown > CASE_MB else said


def _failed(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)
    own = [f for f in last if "histomri" in f.filename and "testing" not in f.filename] or last
    return f"FAILED {type(error).__name__} in {Path(own[-1].filename).name}:{own[-1].lineno} {_line(str(error))}"


def _line(text: str) -> str:
    return ascii(text[:120])[1:-1]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised over, is a ``MemoryError``."""
    pending, seen = [error], set()
    while pending:
        found = pending.pop()
        if id(found) not in seen:
            seen.add(id(found))
            pending += [e for e in (found.__cause__, found.__context__) if e is not None]
            if isinstance(found, MemoryError):
                return True
    return False


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb()


def _serve(seeds: Path, folder: Path, cases: list[Case]) -> None:
    """Run cases one by one; a line before each says which, one after it how it ended."""
    import histomri.io.check
    import histomri.io.omezarr
    import histomri.io.private
    import histomri.io.transform_files  # noqa: F401  (the libraries' own address space comes before the limit)

    signal.signal(signal.SIGPROF, _too_long)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE_MB * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries' own words
        os.dup2(nowhere, stream)
    watch = Watch(folder)
    for at, (reader, case) in enumerate(cases):
        os.write(own, f"case {at}\n".encode())
        path = prepare(folder / INSIDE / reader, seeds, reader, case)
        os.write(own, f"{outcome_of(reader, path, watch)}\n".encode())


# ---------------------------------------------------------------- all cases, in the caller


@dataclass
class Tally:
    """How the cases of a reader ended: how many of each, and the failures by their number."""

    reader: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, case: int, outcome: str) -> None:
        """Count one case."""
        self.counts["failed" if outcome.startswith("FAILED") else outcome] += 1
        if outcome.startswith("FAILED"):
            self.failures[case] = outcome


def run_cases(counts: Mapping[str, int], seeds: Path, folder: Path) -> dict[str, Tally]:
    """Run the cases 0 to count of each reader; a worker that crashes or hangs fails its case, another goes on behind it.

    Files are made in ``folder``, which must be new; readers may write to ``kept`` and ``out`` beside their case alone. A folder
    that nobody may touch, the canary, lies where ``..`` leads from there.
    """
    tallies = {reader: Tally(reader) for reader in counts}
    left = [(reader, case) for reader, count in counts.items() for case in range(count)]
    for reader in counts:
        (folder / INSIDE / reader).mkdir(parents=True)
    (folder / CANARY).mkdir()
    (folder / CANARY / "file").write_text("untouched")
    while left:
        left = left[_run_worker(tallies, left, seeds, folder) :]
    return tallies


def _run_worker(tallies: Mapping[str, Tally], cases: list[Case], seeds: Path, folder: Path) -> int:
    """One worker until it ends; returns how many of the cases it came to."""
    line = [sys.executable, "-c", "from histomri.testing.fuzz import serve; serve()", str(seeds), str(folder)]
    surroundings = {**os.environ, **LIBRARIES, "HISTOMRI_FUZZ_SEEDS": str(seeds), "HOME": str(folder / CANARY)}
    surroundings["PYTHONDONTWRITEBYTECODE"] = "1"
    at, is_open = -1, False
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings, cwd=folder / INSIDE) as worker:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(cases).encode())
        worker.stdin.close()
        for text in _lines(worker):
            is_open = text.startswith("case ")
            if is_open:
                at = int(text[5:])
            else:
                tallies[cases[at][0]].add(cases[at][1], text)
    if is_open:
        how = "hangs in a library" if worker.returncode == -signal.SIGKILL else f"crash, status {worker.returncode}"
        tallies[cases[at][0]].add(cases[at][1], f"FAILED {how}")
    elif worker.returncode:
        raise RuntimeError(f"The worker ended with status {worker.returncode} outside of a case.")
    return at + 1


def _lines(worker: subprocess.Popen[bytes]) -> Any:
    """The worker's lines; it is killed when it says nothing for minutes."""
    assert worker.stdout is not None
    number, held, heard = worker.stdout.fileno(), b"", time.monotonic()
    while True:
        ready, _, _ = select.select([number], [], [], 1.0)
        if not ready:
            if time.monotonic() - heard > STUCK_S:
                worker.kill()
            continue
        data = os.read(number, 65536)
        if not data:
            return
        heard, held = time.monotonic(), held + data
        *whole, held = held.split(b"\n")
        yield from (text.decode() for text in whole)


def serve() -> None:
    """The worker's entry: seeds and folder as arguments, the cases on stdin."""
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), [(reader, case) for reader, case in json.load(sys.stdin)])


def main() -> None:
    """Repeat one case in this process, with its traceback."""
    import tempfile

    from histomri.testing.fuzz_seeds import make_seeds

    reader, case = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HISTOMRI_FUZZ_SEEDS"] = str(folder / "seeds")
        make_seeds(folder / "seeds")
        (folder / INSIDE).mkdir()
        path = prepare(folder / INSIDE, folder / "seeds", reader, case)
        for read in READERS[reader]:
            try:
                read(path)
                print(f"{read.__name__}: sound")
            except HistomriError as error:
                print(f"{read.__name__}: refused: {error}")


if __name__ == "__main__":
    main()
