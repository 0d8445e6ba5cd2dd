"""Where a result came from: programs, config, inputs and outputs, machine and time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import histomri
from histomri.io.atomic import write_json

WHOLE_BYTES = 256 << 20  # larger files are known by their size and both ends: a study's slides may be terabytes
END_BYTES = 1 << 20


def write_provenance(
    study: str, config: Mapping[str, Any], inputs: Iterable[Path], outputs: Iterable[Path], out: Path, threads: int | None = None
) -> None:
    """Write ``provenance.json``: the same study on the same machine gives the same bytes, but for ``written_at``.

    ``inputs`` and ``outputs`` are files; a store is represented by its manifest, whose ``content_sha256`` is taken over.
    Raises ``FileNotFoundError`` for a file that is not there.
    """
    record = {
        "study": study,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "histomri": {"version": histomri.__version__, "git_revision": git_revision(Path(histomri.__file__).parent)},
        "python": platform.python_version(),
        "packages": installed_packages(),
        "machine": _machine(threads),
        "config": config,
        "inputs": _files(inputs),
        "outputs": _files(outputs),
    }
    write_json(out, record)


def installed_packages() -> dict[str, str]:
    """Name and version of every installed Python package, in the order of their names."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def git_revision(folder: Path) -> str | None:
    """The revision of the checkout that holds ``folder``, with ``-dirty`` where that was changed; None where git knows none."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # an environment inside some other project's checkout must not pass that project's revision off as ours
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = git("rev-parse", "HEAD")
    return f"{revision}-dirty" if revision and git("status", "--porcelain", "--", ".") else revision


def _machine(threads: int | None) -> dict[str, Any]:
    variable = os.environ.get("OMP_NUM_THREADS")
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1) if hasattr(os, "sysconf") else None,
        "threads": threads or (int(variable) if variable and variable.isdigit() else None),
    }


def _files(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    return {path.as_posix(): _file(path) for path in sorted({Path(p) for p in paths})}


def _file(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    record: dict[str, Any] = {"bytes": size}
    if size > WHOLE_BYTES:
        return record | {"sha256_of_ends": _sha256_of_ends(path, size)}
    with path.open("rb") as file:
        record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    store = _store_hash(path)
    return record | ({"content_sha256": store} if store else {})


def _sha256_of_ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        first = file.read(END_BYTES)
        file.seek(size - END_BYTES)
        return hashlib.sha256(first + file.read(END_BYTES)).hexdigest()


def _store_hash(path: Path) -> str | None:
    """The hash of the store that a manifest stands for; None for any other file."""
    if path.suffix != ".json":
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return record.get("content_sha256") if isinstance(record, dict) else None
