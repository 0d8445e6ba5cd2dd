"""Results appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
REPLACED = ".replaced"
# Snakemake leaves its own marks inside directory outputs
NOT_CONTENT = (".snakemake_timestamp",)
BLOCK_BYTES = 1 << 16
STORE = ".zarr"
# of whole, and of io.atomic.replacing
LEFT_OVER = re.compile(r".+\.partial|.+\.replaced|\.partial-\d+-.+|\..+\.(claim|retired)")


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A ``.partial`` sibling to write (file or folder), renamed over ``path`` when the block ends, removed when it fails.

    What stood at ``path`` stays until the new result is whole. The sibling's name is this writer's own, and the last one to begin
    owns ``path``: an earlier one that is still at work somewhere (on a node that the cluster lost, say) can write neither into
    the sibling nor over the result. What writers that were killed left over is removed. The caller creates the file or
    folder; its parent exists.

    Raises
    ------
    FileNotFoundError
        When the block wrote nothing.
    OvertakenError
        When another writer of ``path`` began meanwhile; its result stays.
    """
    path, token = Path(path), _own_token()
    partial, replaced = _sibling(path, token, PARTIAL), _sibling(path, token, REPLACED)
    path.parent.mkdir(parents=True, exist_ok=True)
    _claim(path, token)
    _remove_left_over(path)
    try:
        yield partial
        _check_claim(path, token)
        if partial.is_dir() and path.is_dir():
            # a folder cannot be renamed over another one that holds something
            path.rename(replaced)
        partial.replace(path)
    except BaseException:
        remove(partial)
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        _give_up_claim(path, token)
        raise
    remove(replaced)
    _give_up_claim(path, token)


class OvertakenError(RuntimeError):
    """Another process has begun to write the same result since, and owns it."""


def _own_token() -> str:
    """Names this writer among all on all machines."""
    return f"{socket.gethostname().replace('.', '_')[:16]}-{os.getpid()}-{secrets.token_hex(4)}"


def _sibling(path: Path, token: str, ending: str) -> Path:
    return path.with_name(f"{path.name}.{token}{ending}")


def _claim_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim")


def _claim(path: Path, token: str) -> None:
    temporary = path.with_name(f".{path.name}.{token}.claim")
    temporary.write_text(token, encoding="utf-8")
    temporary.replace(_claim_file(path))


def _owner(path: Path) -> str:
    try:
        return _claim_file(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return "one that has ended"


def _give_up_claim(path: Path, token: str) -> None:
    if _owner(path) == token:
        _claim_file(path).unlink(missing_ok=True)


def _check_claim(path: Path, token: str) -> None:
    owner = _owner(path)
    if owner != token:
        raise OvertakenError(f"{path} is no longer this process's to write ({token}): another has begun since ({owner})")


def _remove_left_over(path: Path) -> None:
    """Remove what earlier writers left; each is renamed first, so that none can be published half removed."""
    for ending in (PARTIAL, REPLACED):
        pattern = re.compile(re.escape(path.name) + r"(\.[^.]+-\d+-[0-9a-f]{8})?" + re.escape(ending))
        for old in [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)]:
            retired = old.with_name(f".{old.name}.retired")
            old.rename(retired)
            remove(retired)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed writers left half written below a folder, in which nobody is at work; returns what was removed."""
    found = [path for path in _published(folder) if LEFT_OVER.fullmatch(path.name)]
    for path in found:
        remove(path)
    return found


def back_from_future(folder: Path) -> list[Path]:
    """Give files and stores below a folder that a clock which ran ahead dated to the future the present time; which they were.

    Snakemake fails every job whose input is newer than the output that it just wrote, until the clock has caught up.
    """
    marked = [path / NOT_CONTENT[0] if path.is_dir() else path for path in _published(folder)]
    now = time.time()
    found = [path for path in marked if path.is_file() and path.stat().st_mtime > now]
    for path in found:
        os.utime(path, (now, now), follow_symlinks=False)
    return found


def _published(folder: Path) -> list[Path]:
    """All files and folders below a folder, but for what lies in stores, in what was left over, and in hidden folders."""
    found: list[Path] = []
    for at, folders, files in os.walk(folder):
        found += [Path(at) / name for name in (*folders, *files)]
        folders[:] = [name for name in folders if not (name.endswith(STORE) or name.startswith(".") or LEFT_OVER.fullmatch(name))]
    return found


def content_files(store: str | Path) -> list[tuple[str, Path]]:
    """All files of a store as (relative POSIX path, path), sorted, without the marks that Snakemake leaves."""
    found = []
    for folder, _, names in os.walk(store):
        files = [Path(folder) / name for name in names if name not in NOT_CONTENT]
        found += [(file.relative_to(store).as_posix(), file) for file in files]
    return sorted(found)


def digest_of(data: bytes | memoryview) -> str:
    """SHA-256, in hex, of a file's content: of its bytes up to ``BLOCK_BYTES``, of the CRC-32C of each such block beyond.

    The pixels of a study are terabytes; SHA-256 of them would take longer than decoding them.
    """
    if len(data) <= BLOCK_BYTES:
        return hashlib.sha256(data).hexdigest()
    view = memoryview(data)
    return digest_of_blocks(bytes(view[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))


def digest_of_blocks(blocks: Iterable[bytes]) -> str:
    """SHA-256, in hex, of the CRC-32C of each block."""
    import google_crc32c

    return hashlib.sha256(b"".join(google_crc32c.value(block).to_bytes(4, "little") for block in blocks)).hexdigest()


def digest_of_file(path: Path) -> str:
    """:func:`digest_of` the bytes of a file, a block at a time: one file of a store may be gigabytes."""
    with path.open("rb") as file:
        first = file.read(BLOCK_BYTES + 1)
        if len(first) <= BLOCK_BYTES:
            return digest_of(first)
        file.seek(0)
        return digest_of_blocks(iter(lambda: file.read(BLOCK_BYTES), b""))


def content_sha256(store: str | Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256, in hex, over the names, lengths and :func:`digest_of` of all files of a store folder, in the order of their names.

    The codecs that histomri writes with are deterministic, so equal pixels and metadata give equal hashes. ``known`` are digests
    that the writer of some files took while it had them in hand, by their relative POSIX paths. Raises ``FileNotFoundError``
    where there is no such folder.
    """
    if not Path(store).is_dir():
        raise FileNotFoundError(f"There is no store at {store}.")
    known, digest = known or {}, hashlib.sha256()
    for name, file in content_files(store):
        own = known.get(name) or digest_of_file(file)
        digest.update(f"{name}\0{file.stat().st_size}\0{own}\n".encode())
    return digest.hexdigest()
