"""Runs peers and ours, each in a process of its own, and sets their figures side by side. Runs in histomri's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float64]
BENCHMARKS = Path(__file__).resolve().parents[1]
CHECKOUT = BENCHMARKS.parents[1]
BENCH_PYTHON = CHECKOUT / ".venv-bench" / "bin" / "python"
PEERS = ("greedy", "elastix", "ants")


@dataclass(frozen=True)
class Inputs:
    """One pair of images as files that ITK reads (float32), and their masks."""

    task: str
    fixed: Path
    moving: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None


@dataclass
class Run:
    """What one registration took and where its results lie.

    ``seconds``: ``command`` is the whole process; ``register`` the registration alone; ``start`` the interpreter and imports
    (ours: also loading compiled code); ``export`` what only this benchmark asks for, which ``command`` does not count.
    """

    folder: Path
    status: int
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    log: str = ""


def data_folder() -> Path:
    """The folder of real data: ``HISTOMRI_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("HISTOMRI_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"The real data are not in {folder}; set HISTOMRI_DATA to their folder.")
    return folder


def surroundings(threads: int) -> dict[str, str]:
    """The environment of a run: everything that has a pool of threads gets as many."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def measured(command: Sequence[str], folder: Path, cwd: Path, threads: int) -> Run:
    """Run a command to its end; its wall time, the CPU time and peak memory of it and its children."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=cwd, env=surroundings(threads), stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    run = Run(folder, process.returncode, {"command": wall}, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
    run.log = log.read_text(errors="replace")[-2000:]
    return run


def run_peer(peer: str, jobs: Sequence[Inputs], folders: Sequence[Path], threads: int) -> Run:
    """Run a peer on some pairs, one after the other in one process, each with its own folder; ``ours`` is one of them here.

    The run's seconds and CPU time are those of all pairs together.
    """
    python = Path(sys.executable) if peer == "ours" else BENCH_PYTHON
    if not python.is_file():
        raise SystemExit("The peers are not installed; run `make bench-env`.")
    files = [_write_job(inputs, folder, threads) for inputs, folder in zip(jobs, folders, strict=True)]
    run = measured([str(python), "-m", f"peers.{peer}", *files], folders[0], BENCHMARKS, threads)
    done = [seconds_of(folder) for folder in folders if (folder / "field.mha").is_file()]
    if done:
        _split_seconds(run, {key: sum(parts[key] for parts in done) for key in done[0]})
    return run


def _write_job(inputs: Inputs, folder: Path, threads: int) -> str:
    """``JOB.json`` of one pair."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {key: str(value) if isinstance(value, Path) else value for key, value in vars(inputs).items()}
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"threads": threads, "output": str(folder)}))
    return str(path)


def seconds_of(folder: Path) -> dict[str, float]:
    """The seconds of each part of a pair's registration by a peer."""
    seconds: dict[str, float] = json.loads((folder / "result.json").read_text())["seconds"]
    return seconds


def _split_seconds(run: Run, parts: dict[str, float]) -> None:
    """Put the parts beside the command's wall time, of which the export is taken off."""
    start = run.seconds["command"] - sum(parts.values())
    run.seconds |= parts | {"start": start, "command": run.seconds["command"] - parts["export"]}


def run_ours(fixed: Path, moving: Path, folder: Path, threads: int, options: Sequence[str] = ()) -> Run:
    """Run ``histomri register`` with its defaults and ``options``."""
    command = [sys.executable, "-m", "histomri", "register", str(fixed), str(moving), "--output", str(folder)]
    run = measured([*command, "--threads", str(threads), *options], folder, CHECKOUT, threads)
    path = folder / "result.json"
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text())
        run.seconds |= _our_seconds(result, run.seconds["command"])
    return run


def _our_seconds(result: dict[str, Any], command: float) -> dict[str, float]:
    """The parts of our run, from ``result.json``."""
    register = float(result["registration_seconds"])
    parts = {"register": register, "read and write": float(result["seconds"]) - register}
    return parts | {"start": command - sum(parts.values())}


def changed_picture(
    image: NDArray[np.uint8],
    turn_deg: float = 0.0,
    mirrored: bool = False,
    scale: float = 1.0,
    border: Sequence[float] = (255, 255, 255),
) -> tuple[NDArray[np.uint8], Float]:
    """A picture turned, mirrored (x) and scaled, with room for its corners; and the matrix (3 x 3) from its pixels to these."""
    angle = np.radians(turn_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    height, width = image.shape[:2]
    matrix = np.eye(3)
    matrix[:2, :2] = scale * turn @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]) @ matrix[:2, :2].T
    matrix[:2, 2] = -corners.min(axis=0)
    size = (np.ceil(np.ptp(corners, axis=0)).astype(int) + 1).tolist()
    source = cv2.GaussianBlur(image, (0, 0), 0.5 / scale) if scale < 1 else image
    warped = cv2.warpAffine(source, matrix[:2], size, flags=cv2.INTER_LINEAR, borderValue=list(border))
    return np.asarray(warped, np.uint8), matrix


def displacement_at(field_image: SimpleITK.Image, points: Float) -> Float:
    """Displacements (n, d) of a field image, (x, y[, z]) mm, at physical points (n, d); linear, edges held."""
    data = np.moveaxis(SimpleITK.GetArrayViewFromImage(field_image), -1, 0)
    direction = np.array(field_image.GetDirection()).reshape(points.shape[1], -1)
    index = (points - field_image.GetOrigin()) @ np.linalg.inv(direction).T / field_image.GetSpacing()
    where = index[:, ::-1].T
    return np.stack([ndimage.map_coordinates(c, where, order=1, mode="nearest", output=np.float64) for c in data], axis=-1)


def map_by_field(run: Run, points: Float) -> Float:
    """Physical points of the fixed image in the moving image, by the peer's field."""
    return points + displacement_at(SimpleITK.ReadImage(str(run.folder / "field.mha")), points)


def commit() -> str:
    """The checkout's commit, with ``+`` where files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return ""
    cells = [[_cell(row.get(key)) for key in rows[0]] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
    return "" if value is None else str(value)
