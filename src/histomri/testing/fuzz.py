"""Spoiled files through every reader, in a process of its own with limits on time and memory.

Each case ends well (``sound`` or ``refused`` in words of ours) or is a failure: another exception, a crash of the interpreter,
a hang, memory far beyond what the file can hold. ``python -m histomri.testing.fuzz READER CASE`` repeats one case and shows
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from histomri.core.errors import HistomriError
from histomri.io.memory import peak_memory_mb
from histomri.testing.mutants import write_mutant

Case = tuple[str, int]
# of processor time, and of time without a word: on a busy machine a case may wait long
CASE_S = 20
STUCK_S = 240
# address space beyond what the libraries take, and memory that one case may touch (plain pictures are decoded whole)
SPACE_MB, CASE_MB = 4096, 900
MOST_PX = 1 << 22
SEED = 20261128
LIBRARIES = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS"), "1")


def read_slide(path: Path) -> None:
    """A slide as `check`, `ingest` and `register` see it: facts, private fields, corners of every level."""
    from histomri.io.private import private_fields
    from histomri.io.slides import open_slide, probe
    from histomri.io.tiff_chain import is_cut_off

    private_fields(path)
    is_cut_off(path)
    with suppress(HistomriError):
        probe(path)
    with open_slide(path, None, MOST_PX, "sharpest") as slide:
        for level, shape in enumerate(slide.info.levels or [slide.info.shape]):
            for y, x in ((0, 0), (max(0, shape[0] - 50), max(0, shape[1] - 50))):
                _read_box(slide, level, shape, (y, x))
        planes = np.zeros((len(slide.info.channels), 64, 64), slide.info.dtype)
        slide.read_planes(0, 0, min(64, slide.info.shape[0]), min(64, slide.info.shape[1]), planes)
        assert min(slide.info.shape) > 0
        assert slide.info.pixel_size_mm is None or min(slide.info.pixel_size_mm) > 0
    _read_any(path)


def _read_box(slide: Any, level: int, shape: tuple[int, int], corner: tuple[int, int]) -> None:
    size = min(50, shape[0] - corner[0]), min(50, shape[1] - corner[1])
    pixels = slide.read_region(*corner, *size, level)
    assert pixels.shape == (*size, len(slide.info.channels)) and str(pixels.dtype) == slide.info.dtype


def _read_any(path: Path) -> None:
    """An image as `histomri register` opens it, a corner of its pixels."""
    from histomri.io.images import open_image

    opened = open_image(path)
    corner = tuple(slice(0, 40) for _ in opened.image.grid.shape)
    assert np.asarray(opened.image.data[corner]).shape[: opened.image.grid.ndim] == tuple(
        min(40, n) for n in opened.image.grid.shape
    )


def read_kept(path: Path) -> None:
    """What `ingest.keep` copies out of a slide, and the small image that several sections are found on."""
    from histomri.io.private import IMAGES, keep
    from histomri.io.regions import overview
    from histomri.io.slides import open_slide

    with open_slide(path, None, MOST_PX) as slide:
        keep(path, slide.info.dropped, [*IMAGES, "operator"], path.parent / "kept")
        if np.prod(slide.info.shape) < MOST_PX:
            overview(slide, 64)
        for name in slide.info.dropped:
            slide.read_associated(name)


def read_volume(path: Path) -> None:
    """A NIfTI volume, its geometry alone and whole."""
    from histomri.io.nifti import read_geometry, read_nifti

    grid, _ = read_geometry(path)
    assert np.isfinite(grid.index_to_world).all()
    image = read_nifti(path)
    assert image.data.shape[:3] == image.grid.shape
    _read_any(path)


def read_label(path: Path) -> None:
    """The label of a store, as stages read it."""
    from histomri.io.omezarr import read_pixels
    from histomri.io.zarr_layout import group_attributes

    group_attributes(path / "labels")
    read_pixels(path, "labels/tissue/0")


def read_annotations(path: Path) -> None:
    """GeoJSON, mapped onto itself."""
    from histomri.io import geojson

    document = geojson.read_document(path)
    for shape in geojson.shapes(path, document):
        points = geojson.positions(shape, 2, densify=1.0)
        if len(points) % 2:
            geojson.give_reason(shape, "lost")
        else:
            geojson.replace_positions(shape, points)
            geojson.give_error(shape, 0.5)
    geojson.write_document(path.parent / "out" / "mapped.geojson", document)


def read_points(path: Path) -> None:
    """A table of points, mapped onto itself."""
    from histomri.io import points

    table = points.read_points(path)
    found = table.coordinates(2)
    points.write_points(path.parent / "out" / "mapped.csv", table, found, table.reasons(), errors_mm=table.errors_mm().tolist())


def read_sections(path: Path) -> None:
    """The sheet of sections; what it names must be safe as part of a path."""
    from histomri.core.section import Stack
    from histomri.io import sheets

    found = sheets.read_sections(path, 0.5)
    for section in found:
        assert sheets.section_from_dict(sheets.section_to_dict(section)) == section
        assert all(
            Path("x", n).parent == Path("x") and not n.startswith((".", "-")) for n in (section.id, section.block, section.stain)
        )
    _ = [Stack(b, tuple(s for s in found if s.block == b)).used for b in {s.block for s in found}]


def read_sheet(name: str) -> Callable[[Path], None]:
    """Another sheet by the name of its reader."""

    def read(path: Path) -> None:
        from histomri.io import sheets

        found: Any = {"blocks": sheets.parse_blocks, "landmarks": sheets.parse_landmarks, "guides": sheets.parse_guides}[name](
            path
        )
        found.checked()

    return read


def read_study(path: Path) -> None:
    """A config with sound sheets beside it, as the workflow reads it and as `histomri check` does."""
    from histomri.io.check import check_study
    from histomri.io.config import load_study
    from histomri.testing.fuzz_seeds import BLOCKS, SECTIONS

    (path.parent / "sections.tsv").write_text(SECTIONS.replace("r.tfm\ta", "\t"))
    (path.parent / "blocks.tsv").write_text(BLOCKS)
    assert check_study(path)
    load_study(path)


def read_given_transform(path: Path) -> None:
    """An ITK transform file as a rough transform between sections."""
    from histomri.io.by_hand import read_rough

    transform = read_rough(path)
    assert np.isfinite(transform.map(np.zeros((1, 2)))).all()


def read_locked(path: Path) -> None:
    """A lock whose JSON was changed by hand."""
    import shutil

    from histomri.core import Section
    from histomri.io.by_hand import read_lock
    from histomri.io.placements import fields_file

    source = Path(os.environ["HISTOMRI_FUZZ_SEEDS"]) / "lock" / "lock.fields.npy"
    shutil.copyfile(source, fields_file(path))
    placement, _ = read_lock(Section("a", None, 0.5, "b", lock=path))
    placement.block_to_section.map(np.zeros((2, 2)))


def read_spaces(path: Path) -> None:
    """A graph of spaces, and a point through it."""
    from histomri.io.graph import read_graph
    from histomri.io.transform_files import write_affine
    from histomri.transforms import Affine

    write_affine(path.parent / "block_to_a.tfm", Affine(np.eye(3)))
    write_affine(path.parent / "mri_to_block.tfm", Affine(np.eye(4)))
    graph = read_graph(path)
    graph.map(np.zeros((1, 2)), "slide:a", "mri")


READERS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "tiff": (read_slide, read_kept),
    "svs": (read_slide, read_kept),
    "picture": (read_slide, read_kept),
    "nifti": (read_volume,),
    "zarr": (read_slide, read_label),
    "geojson": (read_annotations,),
    "points": (read_points,),
    "sections": (read_sections,),
    "blocks": (read_sheet("blocks"),),
    "landmarks": (read_sheet("landmarks"),),
    "guides": (read_sheet("guides"),),
    "config": (read_study,),
    "transform": (read_given_transform,),
    "hdf5": (read_given_transform,),
    "lock": (read_locked,),
    "graph": (read_spaces,),
}
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
    chosen = rng.choice(sorted(p for p in (seeds / reader).iterdir() if not p.name.endswith(".npy")))
    target = folder / f"case{''.join(chosen.suffixes)}"
    write_mutant(chosen, target, rng)
    return target


def outcome_of(reader: str, path: Path) -> str:
    """``sound`` or ``refused``, or what went wrong, in a line."""
    refused = False
    for read in READERS[reader]:
        before = _reset_peak()
        signal.setitimer(signal.ITIMER_PROF, CASE_S)
        try:
            read(path)
        except HistomriError as error:
            refused = True
            if not str(error).strip():
                return "FAILED an error without words"
        except _TooLongError:
            return f"FAILED longer than {CASE_S} s"
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)
            own = [f for f in last if "histomri" in f.filename and "testing" not in f.filename] or last
            text = str(error).replace("\n", " ")[:120]
            return f"FAILED {type(error).__name__} in {Path(own[-1].filename).name}:{own[-1].lineno} {text}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if (grown := peak_memory_mb() - before) > CASE_MB:
            return f"FAILED took {grown:.0f} MB"
    return "refused" if refused else "sound"


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
    for at, (reader, case) in enumerate(cases):
        os.write(own, f"case {at}\n".encode())
        path = prepare(folder / reader, seeds, reader, case)
        os.write(own, f"{outcome_of(reader, path)}\n".encode())


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

    Files are made in ``folder``, which must be new; readers may write to ``kept`` and ``out`` in their parts of it alone.
    """
    tallies = {reader: Tally(reader) for reader in counts}
    left = [(reader, case) for reader, count in counts.items() for case in range(count)]
    for reader in counts:
        (folder / reader).mkdir(parents=True)
    while left:
        left = left[_run_worker(tallies, left, seeds, folder) :]
    return tallies


def _run_worker(tallies: Mapping[str, Tally], cases: list[Case], seeds: Path, folder: Path) -> int:
    """One worker until it ends; returns how many of the cases it came to."""
    line = [sys.executable, "-c", "from histomri.testing.fuzz import serve; serve()", str(seeds), str(folder)]
    surroundings = {**os.environ, **LIBRARIES, "HISTOMRI_FUZZ_SEEDS": str(seeds)}
    at, is_open = -1, False
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings, cwd=folder) as worker:
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
        path = prepare(folder, folder / "seeds", reader, case)
        for read in READERS[reader]:
            try:
                read(path)
                print(f"{read.__name__}: sound")
            except HistomriError as error:
                print(f"{read.__name__}: refused: {error}")


if __name__ == "__main__":
    main()
