"""Holds a study, this installation and a new result against the record of an earlier one (``provenance.json``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from histomri.core import InputError
from histomri.io.checksums import decoded, difference
from histomri.io.config import Study, load_study
from histomri.io.given import given_names
from histomri.io.records import read_provenance
from histomri.stages.provenance import file_record, lock_file, programs

Record = Mapping[str, Any]
# of the config, what names files
SHEETS = ("sections", "blocks", "landmarks", "guides")
HAS_CHANGED = "its values are others (the recorded file has changed since, and equals the new one)"


def read_record(path: Path) -> dict[str, Any]:
    """The record of an earlier run. Raises ``InputError`` where the file is none, or names results outside of its folder."""
    return read_provenance(path)


def recorded_study(record: Record, folder: Path) -> Study:
    """The study with the recorded config, its sheets and files as ``folder`` holds them. Raises ``InputError``."""
    return load_study(record["config"], folder)


def config_from(record: Record, folder: Path, output: Path) -> dict[str, Any]:
    """The recorded config, for a file anywhere: its sheets are those of ``folder``, its results go to ``output``."""
    config = dict(record["config"])
    named = {key: str((folder / config[key]).absolute()) for key in SHEETS if config.get(key)}
    return {**{k: v for k, v in config.items() if v is not None}, **named, "output": str(output.absolute())}


def input_differences(record: Record, study: Study) -> Iterator[str]:
    """The user's files that are not what they were, each in words."""
    files, known = given_names(study), record["inputs"]
    for name in sorted({*files, *known}):
        if name not in files:
            yield f"{name}: recorded, and not named by the sheets"
        elif name not in known:
            yield f"{name}: named by the sheets, and not recorded"
        elif not files[name].exists():
            yield f"{name}: there is no file {files[name]}"
        elif not _is_same_content(known[name], found := file_record(files[name])):
            yield f"{name}: {_sizes(known[name], found)}"


def _is_same_content(known: Record, found: Record) -> bool:
    """Whether two records of a file agree in each checksum that both hold; an older record may hold others."""
    both = known.keys() & found.keys() - {"arrays"}
    return bool(both - {"bytes"}) and all(known[key] == found[key] for key in both)


def _sizes(known: Record, found: Record) -> str:
    sizes = known.get("bytes"), found.get("bytes")
    return f"{sizes[0]} bytes were recorded, there are {sizes[1]}" if sizes[0] != sizes[1] else "its content is another"


def program_differences(record: Record) -> Iterator[str]:
    """What this installation has otherwise than the record: histomri's code, Python, packages."""
    here = programs()
    code, now = record["histomri"].get("code", {}), here["histomri"]["code"]
    changed = sorted(rule for rule in {*code, *now} if code.get(rule) != now.get(rule))
    if changed:
        revisions = record["histomri"].get("git_revision"), here["histomri"]["git_revision"]
        yield f"histomri: the code of {', '.join(changed)} is another (revision {revisions[0]} recorded, {revisions[1]} here)"
    if record["python"] != here["python"]:
        yield f"Python: {record['python']} recorded, {here['python']} here"
    yield from _package_differences(record["packages"], here["packages"])


def _package_differences(known: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    """Packages of another version, and those of the lock that only one side has; what else is installed changes no result."""
    locked = _locked()
    for name in sorted({*known, *here}, key=str.lower):
        a, b = known.get(name), here.get(name)
        if a != b and ((a and b) or _plain(name) in locked):
            yield f"{name}: {a or 'none'} recorded, {b or 'none'} here"


def _locked() -> set[str]:
    lock = lock_file()
    text = lock.read_text(encoding="utf-8") if lock else ""
    return {_plain(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def machine_differences(record: Record, other: Record) -> list[str]:
    """What the two machines have otherwise."""
    a, b = record.get("machine", {}), other.get("machine", {})
    return [f"{key}: {a.get(key)} recorded, {b.get(key)} here" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def arrays_in(record: Record) -> dict[tuple[str, str], Any]:
    """The checksums of all arrays of a record, by file and name; one that was too large to decode has none of its own."""
    return {(file, name): c for file, of in record["outputs"].items() for name, c in of.get("arrays", {}).items()}


def compared_by_bytes(record: Record, other: Record) -> set[tuple[str, str]]:
    """The arrays that one of the records holds without a checksum of their own: the bytes of their files are compared."""
    return {key for found in (arrays_in(record), arrays_in(other)) for key, c in found.items() if "sha256" not in c}


def result_differences(record: Record, other: Record, folders: tuple[Path, Path]) -> Iterator[str]:
    """Each array that is another in the new result, with how many values differ where both folders still hold them.

    Of arrays too large to decode, the bytes of their files or stores are compared, and the values where those differ.
    """
    known, found, large = arrays_in(record), arrays_in(other), compared_by_bytes(record, other)
    for file, name in sorted({*known, *found}):
        own, new = (of["outputs"].get(file) for of in (record, other))
        a, b = known.get((file, name)), found.get((file, name))
        # an older record does not name the arrays that were too large
        if own is None or new is None or ((a is None or b is None) and (file, name) not in large):
            yield f"{file}, {name}: only in the {'new' if own is None or a is None else 'recorded'} result"
        elif (file, name) in large:
            yield from _large_difference(file, name, (own, new), folders)
        elif a != b:
            yield f"{file}, {name}: {_by_how_much(file, name, folders) or HAS_CHANGED}"


def _large_difference(file: str, name: str, records: tuple[Record, Record], folders: tuple[Path, Path]) -> Iterator[str]:
    """The difference of an array whose file's bytes differ, unless its values, in files that are as recorded, are equal."""
    if _is_same_content(*records):
        return
    said = _by_how_much(file, name, folders)
    if not said and not _is_same_content(records[0], file_record(folders[0] / file, whole=True)):
        said = HAS_CHANGED
    if said:
        yield f"{file}, {name}: {said}"


def _by_how_much(file: str, name: str, folders: tuple[Path, Path]) -> str:
    """In words, ``""`` where the files that the two folders hold now are equal."""
    try:
        old, new = (dict(decoded(folder / file))[name] for folder in folders)
        return difference(old, new)
    except (OSError, KeyError):
        return "its values are others (the recorded file is not here to compare them)"
    except InputError as error:
        return f"its values are others (and cannot be compared: {error.problems[0].what})"
