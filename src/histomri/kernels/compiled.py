"""Compiled code that numba kept from an earlier version of the kernels is not used again.

Numba compares each function's own file with what it compiled, but not the files of the functions that were compiled into it. So
after an edit, or a ``git pull``, a caller in an unchanged file would go on with the old kernel inside it. What is kept is let
go of as soon as any of the files differs.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

STAMP = "kernels.stamp"
KEPT = ("*.nbi", "*.nbc")


def forget_stale(package: Path) -> bool:
    """Delete numba's files below a package whose sources changed since they were made; whether they had to be.

    Where the package's folder cannot be written nothing is kept in it, and nothing is done.
    """
    now, stamp = _fingerprint(package), package / "__pycache__" / STAMP
    try:
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == now:
            return False
        for kept in [path for pattern in KEPT for path in package.rglob(pattern)]:
            # another process may be at the same
            kept.unlink(missing_ok=True)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(now, encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            stamp.unlink(missing_ok=True)
    return True


def _fingerprint(package: Path) -> str:
    """Names, times and sizes of all sources."""
    sources = sorted(package.rglob("*.py"))
    facts = [(str(path.relative_to(package)), (s := path.stat()).st_mtime_ns, s.st_size) for path in sources]
    return hashlib.sha256(repr(facts).encode()).hexdigest()
