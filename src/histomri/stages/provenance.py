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
from histomri.io.checksums import checksums
from histomri.io.fingerprint import code_fingerprint, file_fingerprint
from histomri.io.publish import content_sha256
from histomri.io.resources import workflow_root

WHOLE_BYTES = 256 << 20  # larger files are known by their size, both ends and samples: a study's slides may be terabytes
END_BYTES = 1 << 20
COMMAND = "HISTOMRI_COMMAND"  # the workflow tells its jobs
STORE_MARK = "zarr.json"
# nothing draws: every search visits fixed places; these optimisers of the engine draw by a seed, and no stage uses them
SEEDS = {"histomri.registration.engine (CMA-ES)": 0}


def write_provenance(
    study: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    outputs: Iterable[Path],
    out: Path,
    threads: int | None = None,
    study_folder: str | None = None,
    code: Mapping[str, str] | None = None,
) -> None:
    """Write ``provenance.json``: the same study on the same machine gives the same bytes, but for ``written_at``.

    ``inputs`` are the user's files by name (:func:`histomri.io.given.given_names`); ``outputs`` are files and folders in the
    present folder, a manifest brings its store along. ``study_folder`` is the config's folder from the output's, None where they
    share no folder; ``code`` the fingerprints of the rules' code, as :func:`code_of_rules` gives them. Raises
    ``FileNotFoundError`` for a file that is not there.
    """
    record = {
        "study": study,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": os.environ.get(COMMAND),
        **programs(code),
        "machine": _machine(threads),
        "seeds": SEEDS,
        "config": config,
        "study_folder": study_folder,
        "inputs": {name: file_record(Path(path)) for name, path in sorted(inputs.items())},
        "outputs": {path.as_posix(): _output(path) for path in _expanded(outputs)},
    }
    write_json(out, record)


def programs(code: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The programs as they are here: histomri by version, revision and what each rule's code says, Python, packages, the lock."""
    return {
        "histomri": {
            "version": histomri.__version__,
            "git_revision": git_revision(Path(histomri.__file__).parent),
            "code": dict(sorted((code_of_rules() if code is None else code).items())),
        },
        "python": platform.python_version(),
        "packages": installed_packages(),
        "lock": lock_sha256(),
    }


def code_of_rules() -> dict[str, str]:
    """The fingerprint of the code of each rule, by ``stage/rule``, as the workflow has it."""
    scripts = workflow_root() / "workflow" / "scripts"
    return {s.relative_to(scripts).with_suffix("").as_posix(): code_fingerprint(s) for s in sorted(scripts.glob("*/*.py"))}


def lock_file() -> Path | None:
    """``envs/requirements.lock``, None where it is not there."""
    lock = workflow_root() / "envs" / "requirements.lock"
    return lock if lock.is_file() else None


def lock_sha256() -> str | None:
    """SHA-256 of the lock, None where it is not there."""
    lock = lock_file()
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock else None


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
        "model": _processor_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1) if hasattr(os, "sysconf") else None,
        "threads": threads or (int(variable) if variable and variable.isdigit() else None),
    }


def _processor_model() -> str | None:
    """What the processor calls itself: numerical libraries choose their code by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _expanded(paths: Iterable[Path]) -> list[Path]:
    """The files, those in folders that are no stores, and the stores that manifests stand for."""
    found: set[Path] = set()
    for path in map(Path, paths):
        inside = path.is_dir() and not (path / STORE_MARK).is_file()
        found |= {p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")} if inside else {path}
        store = _store_of(path)
        found |= {store} if store else set()
    return sorted(found)


def _output(path: Path) -> dict[str, Any]:
    """A file of ours, all its bytes, with the checksums of the arrays in it; a store has no bytes of its own."""
    record = file_record(path, whole=True)
    arrays = checksums(path)
    return record | ({"arrays": arrays} if arrays else {})


def file_record(path: Path, whole: bool = False) -> dict[str, Any]:
    """Size and SHA-256 of a file, of a large one only if ``whole``, else of its ends and samples; a folder by its content."""
    if path.is_dir():
        return {"content_sha256": content_sha256(path)}
    size = path.stat().st_size
    record: dict[str, Any] = {"bytes": size}
    if size > WHOLE_BYTES and not whole:
        return record | {"sha256_of_ends": _sha256_of_ends(path, size), "fingerprint": file_fingerprint(path)}
    with path.open("rb") as file:
        record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    store = _manifest_of(path).get("content_sha256")
    return record | ({"content_sha256": store} if store else {})


def _sha256_of_ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        first = file.read(END_BYTES)
        file.seek(size - END_BYTES)
        return hashlib.sha256(first + file.read(END_BYTES)).hexdigest()


def _manifest_of(path: Path) -> dict[str, Any]:
    """The record in a JSON file; nothing for any other file."""
    if path.suffix != ".json":
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _store_of(path: Path) -> Path | None:
    """The store that a manifest of the present folder stands for, beside it or named from here."""
    record = _manifest_of(path)
    if "content_sha256" not in record or not isinstance(record.get("store"), str):
        return None
    return next((s for s in (Path(record["store"]), path.parent / record["store"]) if s.is_dir()), None)
