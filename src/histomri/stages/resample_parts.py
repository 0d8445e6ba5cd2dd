"""resample, of a volume that outgrows a job: several jobs fill one store, each with chunks that are its own."""

from __future__ import annotations

from pathlib import Path

from histomri.io.volumes import VolumeStore, tiles
from histomri.stages.parts import begin, current, ready, record_part, share
from histomri.stages.resample import VolumePlan, fill, spec_of


def make_empty(plan: VolumePlan, choice: tuple[str, str], working: Path) -> None:
    """The store of ``choice`` = (grid name, stain) without a voxel, in a working folder that is emptied first."""
    store = begin(working)
    VolumeStore(store, spec_of(plan, choice))
    ready(working, store)


def write_part(plan: VolumePlan, choice: tuple[str, str], working: Path, part: tuple[int, int], done: Path) -> None:
    """Fill the chunks of ``part`` = (its number from 0, of how many); ``done`` is written last. The same bytes for any number."""
    store = current(working)
    volume = VolumeStore(store, spec_of(plan, choice), is_there=True)
    boxes = share(list(tiles(plan.grid.shape, plan.chunk)), *part)
    record_part(done, store, *part, fill(volume, plan, boxes))
