"""Shard files of Zarr 3 arrays, written whole: the chunks one after the other, then their index and its CRC-32C.

Why not through zarr-python: it hands every chunk of a shard from coroutine to thread and back and copies it on the way, which
costs as much as compressing it. The format is that of ``sharding_indexed`` (index at the end; offset and length of each chunk as
little-endian uint64, both 2**64 - 1 for a chunk of zeros, which is not stored). zarr and tensorstore read it; tests hold that.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.io.publish import digest_of
from histomri.io.zarr_layout import ArrayLayout
from histomri.kernels.planes import split_planes

Pixels = NDArray[Any]
Encode = Callable[[Pixels, memoryview], int]
EMPTY = np.uint64(2**64 - 1)


def encoder(codec: str, itemsize: int) -> Encode:
    """The function that writes a contiguous chunk as ``zarr_layout.chunk_codecs(codec)`` says, and returns its length."""
    if codec == "none":
        return lambda chunk, place: _put(chunk.tobytes(), place)
    if codec == "zstd":
        return _zstd()
    if codec in ("jpeg", "jpegxl"):
        return _picture(codec)
    import numcodecs  # type: ignore[import-untyped]

    name = codec.removeprefix("blosc-")
    blosc = numcodecs.Blosc(cname=name, clevel=3, shuffle=numcodecs.Blosc.BITSHUFFLE, typesize=itemsize)
    return lambda chunk, place: _put(blosc.encode(chunk), place)


def _put(data: bytes | memoryview, place: memoryview) -> int:
    place[: len(data)] = data
    return len(data)


def _zstd() -> Encode:
    import imagecodecs

    coder: Any = imagecodecs.zstd_encode
    # the same bytes as numcodecs', without two copies and new memory for each
    return lambda chunk, place: len(coder(chunk, level=1, out=place))


def _picture(codec: str) -> Encode:
    import cv2

    from histomri.io.picture_codecs import OPTIONS, encode_picture

    options = OPTIONS[codec]

    def encode(chunk: Pixels, place: memoryview) -> int:
        # NumPy takes as long to interleave the channels as the codec to code them
        pixels = cv2.merge(list(chunk)) if len(chunk) == 3 else np.moveaxis(chunk, 0, -1)
        return _put(encode_picture(codec, pixels, options), place)

    return encode


def _planes_of(codec: str, most: int, data: bytes) -> Pixels:
    """The pixels (c, y, x) of a chunk stored as a picture, of no more than ``most`` pixels."""
    from histomri.io.picture_codecs import decode_picture
    from histomri.io.slides.coded_size import coded_size

    height, width = coded_size(data) or (0, 0)
    pixels = decode_picture(codec, _claiming(data, height * width, most))
    if pixels.ndim == 2:
        return pixels
    height, width, channels = pixels.shape
    planes = np.empty((channels, height, width), pixels.dtype)
    split_planes(pixels, (0, 0, height, width), planes, (0, 0))
    return planes


def decoder(codec: str, chunk_bytes: int) -> Callable[[bytes], Any]:
    """The function that undoes :func:`encoder`: a chunk that unfolds into ``chunk_bytes``, and no more.

    It raises whatever the codec does on bad bytes, ``ValueError`` for those that would unfold into more.
    """
    if codec == "none":
        return bytes
    if codec == "zstd":
        import imagecodecs

        return functools.partial(imagecodecs.zstd_decode, out=chunk_bytes)
    if codec in ("jpeg", "jpegxl"):
        return functools.partial(_planes_of, codec, chunk_bytes)
    import numcodecs

    decode: Callable[[bytes], Any] = numcodecs.Blosc().decode
    return lambda data: decode(_claiming(data, int.from_bytes(data[4:8], "little"), chunk_bytes))


def _claiming(data: bytes, claimed: int, most: int) -> bytes:
    """The data, if they claim no more bytes or pixels than there may be. Raises ``ValueError``."""
    if claimed > most:
        raise ValueError(f"a chunk claims {claimed}, {most} at most were expected")
    return data


def room_for(chunk_bytes: int) -> int:
    """Bytes that a coded chunk may take at most: more than JPEG XL makes of white noise (1.12 of it); zstd and blosc need less.

    Memory that is not written to is never taken.
    """
    return chunk_bytes + (chunk_bytes >> 2) + (1 << 16)


def is_blank(chunk: Pixels) -> bool:
    """Whether all of a chunk is zero; nearly every one shows a pixel at once that is not."""
    # the pixel in the middle tells without NumPy's machinery, which takes 50 us here: the codec has put it out of the cache
    return not chunk.item(chunk.size >> 1) and not chunk[:, ::64, ::64].any() and not chunk.any()


class ShardBuffer:
    """A shard in the making: coded chunks one after the other, in memory that is used again for the next one."""

    def __init__(self, chunks: int, chunk_bytes: int):
        # unlike a bytearray it takes no memory before it is written to
        self._data = np.empty(chunks * room_for(chunk_bytes) + 16 * chunks + 4, np.uint8).data
        self._index, self._end = np.full((chunks, 2), EMPTY, "<u8"), 0

    def clear(self) -> None:
        """Forget the chunks."""
        self._index[...], self._end = EMPTY, 0

    @property
    def is_empty(self) -> bool:
        """Whether no chunk was added."""
        return self._end == 0

    def add(self, number: int, chunk: Pixels, encode: Encode) -> None:
        """Code a contiguous chunk as that number, in C order; one that is all zero is left out, as the format has it."""
        if is_blank(chunk):
            return
        length = encode(chunk, self._data[self._end :])
        self._index[number] = self._end, length
        self._end += length

    def put(self, number: int, coded: memoryview) -> None:
        """Add a chunk that is already coded as that number."""
        self._data[self._end : self._end + len(coded)] = coded
        self._index[number] = self._end, len(coded)
        self._end += len(coded)

    def file(self, is_sharded: bool) -> memoryview:
        """The bytes of the file: chunks, index and its CRC-32C; of the only chunk alone where there are no shards."""
        import google_crc32c

        table = self._index.tobytes() if is_sharded else b""
        tail = table + google_crc32c.value(table).to_bytes(4, "little") if is_sharded else b""
        end = self._end + len(tail)
        self._data[self._end : end] = tail
        return self._data[:end]


class ArrayFiles:
    """The files of one array (c, y, x) of a store, for whoever writes whole shards of it (or chunks, where it has no shards).

    ``folder`` is the array's. ``digests`` collects the digest of each file, by its path in the store. Threads may write different
    files at once.
    """

    def __init__(self, folder: Path, layout: ArrayLayout):
        if sys.byteorder != "little":
            raise RuntimeError("Stores are written on little-endian machines only.")
        self.folder, self.layout, self.dtype = folder, layout, np.dtype(layout.dtype)
        self.shape = (layout.channels, *layout.shape[-2:])
        self.chunk_px, self.unit_px = layout.chunk_px, layout.unit_px
        self.per_unit = (self.unit_px // self.chunk_px) ** 2
        self.digests: dict[str, str] = {}
        self.encode, self.is_lossy = encoder(layout.codec, self.dtype.itemsize), layout.codec == "jpeg"

    def buffer(self) -> ShardBuffer:
        """Room for one unit of this array."""
        return ShardBuffer(self.per_unit, self.shape[0] * self.chunk_px**2 * self.dtype.itemsize)

    def write(self, row: int, column: int, shard: ShardBuffer) -> None:
        """Write the file of the unit at ``row``, ``column``; there is none for a unit of zeros."""
        if shard.is_empty:
            return
        data = shard.file(self.layout.is_sharded)
        file = self.layout.file(self.folder, row, column)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.digests[file.relative_to(self.folder.parent).as_posix()] = digest_of(data)


def write_pixels(folder: Path, layout: ArrayLayout, pixels: Pixels) -> None:
    """Write all pixels, (c, y, x) or (y, x), of the array ``folder``, which are in memory."""
    files, side, across = ArrayFiles(folder, layout), layout.chunk_px, layout.unit_px // layout.chunk_px
    planes, shard = pixels.reshape(files.shape), files.buffer()
    for row, column in itertools.product(*(range(-(-n // layout.unit_px)) for n in files.shape[1:])):
        shard.clear()
        for number, (r, c) in enumerate(itertools.product(range(across), repeat=2)):
            y, x = row * layout.unit_px + r * side, column * layout.unit_px + c * side
            part = planes[:, y : y + side, x : x + side]
            chunk = np.zeros((files.shape[0], side, side), files.dtype)
            chunk[:, : part.shape[1], : part.shape[2]] = part
            shard.add(number, chunk, files.encode)
        files.write(row, column, shard)


class StoredLevel:
    """Boxes of an array (c, y, x) or (y, x) whose files :class:`ArrayFiles` wrote.

    zarr reads them too, at some milliseconds a box, whichever chunk that lies in.
    """

    def __init__(self, folder: Path, layout: ArrayLayout):
        self.folder, self.layout, self.dtype = folder, layout, np.dtype(layout.dtype)
        self.shape = (layout.channels, *layout.shape[-2:])
        self.chunk_px = layout.chunk_px
        self._chunk_bytes = self.shape[0] * self.chunk_px**2 * self.dtype.itemsize
        self._decode = decoder(layout.codec, self._chunk_bytes)

    def whole(self) -> Pixels:
        """All pixels, of the array's shape."""
        return self.box((0, 0), self.shape[1:]).reshape(self.layout.shape)

    def box(self, corner: tuple[int, int], size: Sequence[int]) -> Pixels:
        """The pixels (c, height, width) of a box at ``corner`` (y, x) inside the array."""
        return self._box(corner, size, {})

    def boxes(self, corners: Sequence[tuple[int, int]], side: int, threads: int = 1) -> Iterator[Pixels]:
        """The squares (c, side, side) at ``corners`` (y, x), all inside the array; in the order of their chunks."""
        chunk = self.chunk_px
        ordered = sorted(corners, key=lambda at: (at[0] // chunk, at[1] // chunk, at))
        groups = [list(g) for _, g in itertools.groupby(ordered, key=lambda at: (at[0] // chunk, at[1] // chunk))]
        with ThreadPoolExecutor(threads) as pool:
            for found in pool.map(lambda group: self._near(group, side), groups):
                yield from found

    def _near(self, corners: list[tuple[int, int]], side: int) -> list[Pixels]:
        """Boxes that start in one chunk, of which each chunk is decoded once."""
        chunks: dict[tuple[int, int], Pixels] = {}
        return [self._box(at, (side, side), chunks) for at in corners]

    def _box(self, corner: tuple[int, int], size: Sequence[int], chunks: dict[tuple[int, int], Pixels]) -> Pixels:
        out, n = np.empty((self.shape[0], *size), self.dtype), self.chunk_px
        ranges = [range(at // n, (at + side - 1) // n + 1) for at, side in zip(corner, size, strict=True)]
        for row, column in itertools.product(*ranges):
            if (row, column) not in chunks:
                chunks[row, column] = self._chunk(row, column)
            y, x = row * n - corner[0], column * n - corner[1]
            source = (slice(max(0, -y), size[0] - y), slice(max(0, -x), size[1] - x))
            part = chunks[row, column][:, source[0], source[1]]
            out[:, max(0, y) : max(0, y) + part.shape[1], max(0, x) : max(0, x) + part.shape[2]] = part
        return out

    def _chunk(self, row: int, column: int) -> Pixels:
        """A decoded chunk (c, y, x), whole also where it reaches beyond the array."""
        shape = (self.shape[0], self.chunk_px, self.chunk_px)
        per_unit = self.layout.unit_px // self.chunk_px
        file = self.layout.file(self.folder, row // per_unit, column // per_unit)
        coded = self._coded(file, row % per_unit * per_unit + column % per_unit) if file.exists() else b""
        return np.frombuffer(self._decode(coded), self.dtype).reshape(shape) if coded else np.zeros(shape, self.dtype)

    def _coded(self, file: Path, number: int) -> bytes:
        if not self.layout.is_sharded:
            return file.read_bytes()
        with file.open("rb") as stream:
            stream.seek(16 * number - 16 * (self.layout.unit_px // self.chunk_px) ** 2 - 4, os.SEEK_END)
            at, length = (int(n) for n in np.frombuffer(stream.read(16), "<u8"))
            if at == EMPTY:
                return b""
            if length > room_for(self._chunk_bytes):
                raise ValueError(f"the shard's index has a chunk of {length} bytes")
            stream.seek(at)
            return stream.read(length)
