"""What a peer is given and what it hands back: ``python -m peers.<peer> JOB.json ...``, in the bench environment.

``JOB.json``::

    {"task": "pairs" | "planes" | "volumes" | "contrasts", "fixed": path, "moving": path, "fixed_mask": path or null,
     "moving_mask": path or null, "threads": n, "output": folder}

Images are files that ITK reads. ``output`` gets ``field.mha``, the displacement (x, y[, z]) in mm from each point of the fixed
grid to the moving image, in ITK's physical space, and ``result.json`` with the seconds and CPU seconds of each part, or
``failed`` with the reason. All that is compared is computed from the field, in the same way for all peers.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK


@dataclass(frozen=True)
class Job:
    """One registration; the keys of ``JOB.json``."""

    task: str
    fixed: Path
    moving: Path
    fixed_mask: Path | None
    moving_mask: Path | None
    threads: int
    output: Path

    @staticmethod
    def read(path: Path) -> Job:
        """Read ``JOB.json``."""
        given: dict[str, Any] = json.loads(path.read_text())
        paths = {key: Path(given[key]) for key in ("fixed", "moving", "output")}
        masks = {key: Path(given[key]) if given[key] else None for key in ("fixed_mask", "moving_mask")}
        return Job(task=given["task"], threads=given["threads"], **paths, **masks)


@dataclass
class Clock:
    """Wall seconds, and CPU seconds of all threads, of each part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to the part ``name``."""
        start, busy = time.perf_counter(), time.process_time()
        yield
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - busy
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def read_image(path: Path) -> SimpleITK.Image:
    """An image as float32, or of float32 vectors."""
    image = SimpleITK.ReadImage(str(path))
    vector = image.GetNumberOfComponentsPerPixel() > 1
    return SimpleITK.Cast(image, SimpleITK.sitkVectorFloat32 if vector else SimpleITK.sitkFloat32)


def main(register: Callable[[Job, Clock], SimpleITK.Image]) -> None:
    """Run the jobs named on the command line with a peer's ``register(job, clock) -> field``; status 1 when one failed."""
    outcomes = [_run(register, Job.read(Path(path))) for path in sys.argv[1:]]
    sys.exit(0 if all(outcomes) else 1)


def _run(register: Callable[[Job, Clock], SimpleITK.Image], job: Job) -> bool:
    """Run one job; what went wrong is its result, so that the next one has its turn."""
    clock, result = Clock(), {}
    job.output.mkdir(parents=True, exist_ok=True)
    try:
        found = register(job, clock)
        with clock.part("export"):
            SimpleITK.WriteImage(SimpleITK.Cast(found, SimpleITK.sitkVectorFloat32), str(job.output / "field.mha"))
    except Exception as error:
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    (job.output / "result.json").write_text(json.dumps(result | {"seconds": clock.seconds, "cpu": clock.cpu}, indent=1))
    return not result
