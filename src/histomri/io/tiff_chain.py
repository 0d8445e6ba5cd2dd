"""Whether a TIFF's chain of directories ends inside the file: cut off behind level 0, its pixels alone would not tell."""

from __future__ import annotations

import struct
from pathlib import Path

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
        start, count_format, entry_bytes, link_format = (4, "H", 12, "I") if version == 42 else (8, "Q", 20, "Q")
        (offset,) = struct.unpack_from(order + link_format, head, start)
        seen = set()
        while offset and offset not in seen:
            seen.add(offset)
            file.seek(offset)
            entries = file.read(struct.calcsize(count_format))
            if len(entries) < struct.calcsize(count_format):
                return True
            file.seek(struct.unpack(order + count_format, entries)[0] * entry_bytes, 1)
            link = file.read(struct.calcsize(link_format))
            if len(link) < struct.calcsize(link_format):
                return True
            (offset,) = struct.unpack(order + link_format, link)
    return False
