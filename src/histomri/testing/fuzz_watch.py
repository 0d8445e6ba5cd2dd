"""Sees what a reader writes where it may not: Python's own calls by an audit hook, those of libraries by what lies there then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# audit events that change a file or folder: which arguments are paths, and where the folder that each is relative to stands
CHANGES = {
    "os.chmod": ((0, 2),),
    "os.link": ((1, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
# numba's kept kernels, and what swallows or makes nothing
ALLOWED_PARTS = ("__pycache__",)
KERNELS = "NUMBA_CACHE_DIR"  # where they are kept instead, if it is set
ALLOWED_PATHS = ("/dev/null", "/proc/self/clear_refs")
State = dict[str, tuple[int, ...]]


class OutsideError(BaseException):
    """A reader wanted to write where it may not; no ``except Exception`` takes it for bad bytes."""


class Watch:
    """One process's writes: refused and noted outside of the folders that :meth:`only` names, while it lasts.

    ``around`` is the folder that holds what nobody may touch.
    """

    def __init__(self, around: Path) -> None:
        self.around = around
        self.seen: list[str] = []
        self._allowed: tuple[Path, ...] | None = None
        # a hook cannot be taken away again; this one sleeps
        sys.addaudithook(self._hook)

    @contextmanager
    def only(self, folders: Sequence[Path]) -> Iterator[None]:
        """While it lasts, every write of Python's outside of ``folders`` raises :class:`OutsideError` and is kept in ``seen``."""
        self.seen, self._allowed = [], tuple(f.resolve() for f in folders)
        try:
            yield
        finally:
            self._allowed = None

    def listing(self, left_out: Sequence[Path]) -> State:
        """Size, time and number of every file and folder below :attr:`around`, by its path; links are not followed."""
        found: State = {}
        skipped, pending = {str(p) for p in left_out}, [str(self.around)]
        while pending:
            for entry in os.scandir(pending.pop()):
                if entry.path in skipped:
                    continue
                state, is_folder = entry.stat(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
                # a folder's own time says no more than the names in it
                found[entry.path] = (0,) if is_folder else (state.st_size, state.st_mtime_ns, state.st_ino)
                pending += [entry.path] if is_folder else []
        return found

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._allowed is None:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        places = ((0, None),) if event == "open" else CHANGES.get(event, ())
        for at, folder_at in places:
            folder = arguments[folder_at] if folder_at is not None and folder_at < len(arguments) else -1
            if not self._may_change(arguments[at], folder):
                self.seen.append(f"{event} {arguments[at]!r}")
                raise OutsideError(self.seen[-1])

    def _may_change(self, path: Any, folder: Any) -> bool:
        """Whether a path, relative to an open folder where one is given, may be written to; links are followed to the folder."""
        if isinstance(path, int):
            return True
        start = Path(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else Path.cwd()
        place = start.resolve() / os.fsdecode(path)
        if str(place) in ALLOWED_PATHS or any(part in place.parts for part in ALLOWED_PARTS):
            return True
        if (kernels := os.environ.get(KERNELS)) and place.is_relative_to(kernels):
            return True
        # the link itself is what is removed or renamed, what it leads to is what is opened
        real = {Path(os.path.realpath(place)), Path(os.path.realpath(place.parent), place.name)}
        return all(any(r.is_relative_to(allowed) for allowed in self._allowed or ()) for r in real)


def changes(before: State, after: State) -> list[str]:
    """The paths that came, went or changed between two listings."""
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
