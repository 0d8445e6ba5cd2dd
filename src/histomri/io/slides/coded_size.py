"""The size that a coded picture claims, from its first bytes: a tile of a slide must not unfold into a picture of gigapixels.

Deflate, LZW and zstd need no such look: their decoders are told how much is expected. These decode what the data says.
"""

from __future__ import annotations

import struct

SIZE = tuple[int, int]
JPEG = b"\xff\xd8"
# no start of a frame: Huffman tables, an extension, arithmetic coding conditions
JPEG_NO_FRAME = (0xC4, 0xC8, 0xCC)
JPEG_2000 = b"\xff\x4f\xff\x51"
JPEG_XL, JPEG_XL_BOX = b"\xff\x0a", b"\0\0\0\x0cJXL "
JPEG_XL_HEAD = 11  # of its mark and its size at most
JPEG_XR = b"II\xbc"
JPEG_XR_TAGS = {0xBC80: 1, 0xBC81: 0}
# JPEG XL's names for how wide a picture is, relative to its height
RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def coded_size(data: bytes) -> SIZE | None:
    """(height, width) of PNG, JPEG, WebP, JPEG 2000, XL and XR, and LERC data; None where it is none of them, or cut off."""
    try:
        if data.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", data, 16)
            return height, width
        if data.startswith(JPEG):
            return _jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if (at := data[:1000].find(JPEG_2000)) >= 0:
            right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
            return bottom - top, right - left
        if data.startswith((JPEG_XL, JPEG_XL_BOX)):
            return _jpegxl(data)
        if data.startswith(b"Lerc2 "):
            # a checksum stands before the size since version 3
            height, width = struct.unpack_from("<II", data, 14 if data[6] >= 3 else 10)
            return height, width
        return _jpegxr(data) if data.startswith(JPEG_XR) else None
    except (struct.error, IndexError):
        return None


def _jpeg(data: bytes) -> SIZE | None:
    """From the frame's header (ITU T.81, B.2.2; JPEG-LS has a marker of its own); None where pixels begin before any."""
    at = len(JPEG)
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            return None
        if (0xC0 <= marker <= 0xCF and marker not in JPEG_NO_FRAME) or marker == 0xF7:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp(data: bytes) -> SIZE:
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return height & 0x3FFF, width & 0x3FFF


class _Bits:
    """Numbers of some bits each, the lowest bit first."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data[:16], "little")

    def take(self, count: int) -> int:
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value

    def side(self, in_eights: bool) -> int:
        """A side of a picture in JPEG XL's size header (ISO 18181-1, D.2)."""
        if in_eights:
            return (1 + self.take(5)) * 8
        return 1 + self.take((9, 13, 18, 30)[self.take(2)])


def _jpegxl(data: bytes) -> SIZE | None:
    start = data.find(JPEG_XL, data.find(b"jxlc") if b"jxlc" in data[:4096] else 0) if data.startswith(JPEG_XL_BOX) else 0
    if start < 0 or len(data) < start + JPEG_XL_HEAD:
        return None
    bits = _Bits(data[start + 2 : start + 18])
    in_eights = bool(bits.take(1))
    height, ratio = bits.side(in_eights), bits.take(3)
    return height, height * RATIOS[ratio][0] // RATIOS[ratio][1] if ratio else bits.side(in_eights)


def _jpegxr(data: bytes) -> SIZE | None:
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    size = [0, 0]
    for i in range(count):
        tag, kind, _, value = struct.unpack_from("<HHII", data, at + 2 + 12 * i)
        if tag in JPEG_XR_TAGS:
            size[JPEG_XR_TAGS[tag]] = value & 0xFFFF if kind == 3 else value
    return size[0], size[1]
