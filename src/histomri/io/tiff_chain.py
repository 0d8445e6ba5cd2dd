"""Whether a TIFF's chain of directories ends inside the file: cut off behind level 0, its pixels alone would not tell."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

CLASSIC_LIMIT = 2**32  # beyond it, NDPI's offsets wrap around and say nothing


def is_cut_off(path: Path) -> bool:
    """True for a TIFF (classic or Big) one of whose image directories lies beyond the end of the file; False for other files."""
    if path.is_dir():
        return False
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return False
        (version,) = struct.unpack(order + "H", head[2:4])
        if version not in (42, 43) or (version == 42 and size >= CLASSIC_LIMIT):
            return False
        start, layout = (4, ("H", 12, "I")) if version == 42 else (8, ("Q", 20, "Q"))
        (offset,) = struct.unpack_from(order + layout[2], head, start)
        return _leads_beyond(file, size, offset, (order, *layout))


def _leads_beyond(file: IO[bytes], size: int, offset: int, layout: tuple[str, str, int, str]) -> bool:
    """Whether the chain that begins at ``offset`` leaves the file, by a damaged number for one."""
    order, count_format, entry_bytes, link_format = layout
    seen = set()
    while offset and offset not in seen:
        seen.add(offset)
        if offset >= size:
            return True
        file.seek(offset)
        entries = file.read(struct.calcsize(count_format))
        if len(entries) < struct.calcsize(count_format):
            return True
        end = offset + len(entries) + struct.unpack(order + count_format, entries)[0] * entry_bytes
        if end + struct.calcsize(link_format) > size:
            return True
        file.seek(end)
        (offset,) = struct.unpack(order + link_format, file.read(struct.calcsize(link_format)))
    return False
