"""No write outside of the folder of results: symbolic links below it that lead elsewhere are found before anything runs.

The folder of results itself may be a link, as it often is on clusters (to a scratch disk). What is linked below it would be
written through, replaced or emptied wherever it lies, by the run or by Snakemake.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from histomri.core.errors import Problem
from histomri.io.publish import NOT_CONTENT, STORE

# under these, stores are replaced as a whole and never written into; a walk through millions of chunks would take minutes
STORES_IN = ("sections", "blockface", "volumes")
# Snakemake's environments, full of links of their own, are conda's to write
ENVIRONMENTS = (".snakemake/conda", ".snakemake/conda-archive", ".snakemake/singularity")
REMEDY = (
    "remove the link, or put what it names in its place; to keep results on another disk, name a folder there by the key output,"
    " or make the whole output folder the link"
)


def link_problems(folder: Path) -> list[Problem]:
    """A problem for each link below a folder of results (which need not exist) that leads out of it, sorted by path."""
    found = [(link, _target(link)) for link in sorted(_links(folder))]
    home = folder.resolve()
    return [
        Problem(str(link), f"this symbolic link leads out of the folder of results, to {target or 'itself'}", REMEDY)
        for link, target in found
        if target is None or not target.is_relative_to(home)
    ]


def _target(link: Path) -> Path | None:
    """Where a link leads in the end, whether anything is there or not; None for one that goes in circles."""
    try:
        return link.resolve()
    except (OSError, RuntimeError):
        return None


def _links(folder: Path) -> Iterator[Path]:
    """All symbolic links below a folder, none followed; of whole stores only the mark that Snakemake writes into them."""
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        # a folder that cannot be read cannot be written by this run either
        with suppress(OSError), os.scandir(at) as entries:
            for entry in entries:
                path = at / entry.name
                if entry.is_symlink():
                    yield path
                elif entry.is_dir(follow_symlinks=False) and not _is_left_alone(path.relative_to(folder)):
                    waiting.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    yield from (path / name for name in NOT_CONTENT if (path / name).is_symlink())


def _is_left_alone(inside: Path) -> bool:
    is_store = inside.name.endswith(STORE) and inside.parts[0] in STORES_IN
    return is_store or inside.as_posix() in ENVIRONMENTS
