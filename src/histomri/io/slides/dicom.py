"""The files of a DICOM whole-slide series, which is one file for each level, the label and the overview, side by side.

openslide takes any of them for the slide and finds the others by their Series Instance UID. One whose header is cut off it passes
over without a word: if that is the finest level, the slide comes out at a lower resolution, as if it were whole.
"""

from __future__ import annotations

from pathlib import Path

# who belongs to whom stands near the start; PS3.5 7.1: elements lie in the order of their tags
HEAD_BYTES = 1 << 16
PIXEL_DATA = b"\xe0\x7f\x10\x00O"
END_OF_FRAMES = b"\xfe\xff\xdd\xe0\0\0\0\0"


def series_files(path: Path, uid: str) -> tuple[Path, ...]:
    """The files beside ``path``, itself among them, of the series with that UID."""
    return tuple(file for file in sorted(path.parent.iterdir()) if _is_of(file, uid.encode()))


def _is_of(file: Path, uid: bytes) -> bool:
    """Whether a file is a DICOM file that has the UID, and not merely a longer one, in its head."""
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    # SeriesInstanceUID (0020,000E), explicit VR little endian, of even length
    even = uid + b"\0" * (len(uid) % 2)
    return head[128:132] == b"DICM" and b"\x20\x00\x0e\x00UI" + len(even).to_bytes(2, "little") + even in head


def has_lost_its_pixels(file: Path) -> bool:
    """Whether a file ends before its pixels begin."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - len(END_OF_FRAMES)))
        if stream.read() == END_OF_FRAMES:
            return False
        stream.seek(0)
        kept = b""
        while block := stream.read(1 << 20):
            if PIXEL_DATA in kept + block:
                return False
            kept = block[-len(PIXEL_DATA) :]
    return True
