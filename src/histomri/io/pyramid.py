"""All levels of a pyramid in one pass over level 0: read a chunk, store it, add it to the chunk above, forget it.

The tree of chunks is walked depth first, each worker taking the next shard of level 0. Pixels go through a chunk at a time, small
enough to stay in the processor's cache: read, split into planes, coded, summed in fours into the chunk above. Whoever completes a
chunk above codes it, while it is hot, and goes on to the one above that; whoever completes a shard writes its file. What is held
is a chunk of sums and a shard as coded per level and worker, however big the image. Sums are exact and chunks lie in a file in
their own order, so that neither threads nor the order of the work change a bit.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.io.shards import ArrayFiles, ShardBuffer, is_blank, room_for
from histomri.kernels.planes import split_planes
from histomri.kernels.pyramid import add_quads, sum_type, to_pixels, to_pixels_and_above, worth_compiling

Pixels = NDArray[Any]
ReadTile = Callable[[int, int, int, int], Pixels]
ReadPlanes = Callable[[int, int, int, int, Pixels], None]
Progress = Callable[[int], None]
Box = tuple[int, int, int, int]
Place = tuple[int, int, int]


def silent(pixels: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Reading:
    """How level 0 is read, by how many workers, and whom to tell how many pixels were written.

    ``read_tile(y, x, height, width)`` gives (height, width, c); it is asked for squares of at least ``block_px``. Where there is
    ``read_planes(y, x, height, width, planes)``, which fills the corner of contiguous planes (c, y, x), it is asked instead, for
    single chunks.
    """

    read_tile: ReadTile
    block_px: int = 0
    threads: int = 1
    progress: Progress = silent
    read_planes: ReadPlanes | None = None


@dataclass
class UnfinishedSums:
    """The sums (c, y, x) of a chunk above level 0, and how many of its up to four parts are still missing."""

    sums: Pixels
    missing: int


@dataclass
class UnfinishedShard:
    """The coded chunks of a shard above level 0 by their number in it (where each lies, its length), and how many are missing."""

    missing: int
    chunks: dict[int, tuple[Pixels, int]] = field(default_factory=dict)


class SpareSums:
    """Arrays that were used and will be used again: new memory costs as much as adding up what goes into it."""

    def __init__(self) -> None:
        self._spare: dict[tuple[Any, ...], list[Pixels]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Pixels:
        """An array of any content."""
        spare = self._spare.get((shape, dtype))
        return spare.pop() if spare else np.empty(shape, dtype)

    def give(self, sums: Pixels) -> None:
        """Give an array back."""
        self._spare.setdefault((sums.shape, sums.dtype), []).append(sums)


class PyramidWriter:
    """Writes the ``levels`` of an image, finest first, from ``reading``; :meth:`write` does it once.

    ``chunk_px`` and ``unit_px`` are the sides of a chunk and of a shard where a level is larger than those. A place is
    (level, row, column) of a chunk.
    """

    def __init__(self, levels: Sequence[ArrayFiles], chunk_px: int, unit_px: int, reading: Reading):
        self.levels, self.chunk_px, self.unit_px, self.reading = levels, chunk_px, unit_px, reading
        self.block_px = min(unit_px, -(-max(reading.block_px, chunk_px) // chunk_px) * chunk_px)
        self.is_compiled = worth_compiling(int(np.prod(levels[0].shape[1:])))
        self._sums: dict[Place, UnfinishedSums] = {}
        self._shards: dict[Place, UnfinishedShard] = {}
        self._spare = SpareSums()
        self._lock, self._failed, self._own = threading.Lock(), threading.Event(), threading.local()

    def write(self) -> None:
        """Write every level. The first exception of the reader or the disk ends the pass and is raised here."""
        order = iter(depth_first(*self._count(0, self.unit_px)))
        with ThreadPoolExecutor(max(1, self.reading.threads)) as pool:
            workers = [pool.submit(self._work, order) for _ in range(max(1, self.reading.threads))]
            try:
                for worker in workers:
                    worker.result()
            finally:
                # on an interrupt too: the pool waits for its workers
                self._failed.set()

    def _work(self, order: Iterator[tuple[int, int]]) -> None:
        try:
            while not self._failed.is_set():
                with self._lock:
                    shard = next(order, None)
                if shard is None:
                    return
                self._write_shard(*shard)
        except BaseException:
            self._failed.set()
            raise

    def _count(self, level: int, side: int) -> tuple[int, int]:
        """Squares of that side down and across a level."""
        height, width = self.levels[level].shape[1:]
        return -(-height // side), -(-width // side)

    def _size(self, level: int, row: int, column: int, side: int) -> tuple[int, int]:
        """(height, width) of a square of that side of a level, ragged at its end."""
        height, width = self.levels[level].shape[1:]
        return min(side, height - row * side), min(side, width - column * side)

    def _write_shard(self, row: int, column: int) -> None:
        """Write one shard of level 0, and what it completes of the levels above."""
        files, shard = self.levels[0], self._buffer(0)
        corner, size = (row * self.unit_px, column * self.unit_px), self._size(0, row, column, self.unit_px)
        planes = self._planes(0)
        for y, x, height, width in self._read(corner, size, planes):
            r, c = y // self.chunk_px, x // self.chunk_px
            per_shard = self.unit_px // self.chunk_px
            # before coding, which fills the cache with its own
            self._add_up((0, row * per_shard + r, column * per_shard + c), planes, (height, width))
            _pad(planes, (height, width), files.is_lossy)
            shard.add(r * (files.unit_px // files.chunk_px) + c, planes, files.encode)
        files.write(row, column, shard)
        self.reading.progress(size[0] * size[1])

    def _add_up(self, place: Place, planes: Pixels, size: tuple[int, int]) -> None:
        """Add a chunk of level 0 to the one above; go on from there when that is whole."""
        if len(self.levels) == 1:
            return
        parent, corner = self._above(place)
        above = self._open(parent)
        add_quads(planes, (0, 0, *size), above.sums, corner, self.is_compiled)
        if self._is_whole(parent, above):
            self._finish(parent, above.sums)

    def _finish(self, place: Place, sums: Pixels) -> None:
        """Round and code a chunk above level 0 of which all is there, add it to the one above, and so on upwards."""
        level, size, planes = place[0], (sums.shape[1], sums.shape[2]), self._planes(place[0])
        _clear(planes, *size)
        if level + 1 == len(self.levels):
            to_pixels(sums, (0, 0, *size), level, planes, self.is_compiled)
            self._store(place, size, planes)
            return
        parent, corner = self._above(place)
        above = self._open(parent)
        # both before coding, which fills the cache with its own
        to_pixels_and_above(sums, level, planes, above.sums, corner, self.is_compiled)
        is_whole = self._is_whole(parent, above)
        self._store(place, size, planes)
        # ragged ones at the image's edge are of many shapes, and not worth keeping
        if size == (self.chunk_px, self.chunk_px):
            with self._lock:
                self._spare.give(sums)
        if is_whole:
            self._finish(parent, above.sums)

    def _above(self, place: Place) -> tuple[Place, tuple[int, int]]:
        """The chunk above one, and where in it the sums of the one begin (y, x)."""
        (level, row, column), half = place, self.chunk_px // 2
        return (level + 1, row // 2, column // 2), (row % 2 * half, column % 2 * half)

    def _is_whole(self, place: Place, above: UnfinishedSums) -> bool:
        """Count a part that was added to a chunk of sums; whether that was its last."""
        with self._lock:
            above.missing -= 1
            if not above.missing:
                del self._sums[place]
            return not above.missing

    def _open(self, place: Place) -> UnfinishedSums:
        """The chunk of sums with that place, made when its first part comes."""
        level, row, column = place
        with self._lock:
            if place not in self._sums:
                files, size = self.levels[level], self._size(level, row, column, self.chunk_px)
                sums = self._spare.take((files.shape[0], *size), sum_type(files.dtype, level))
                self._sums[place] = UnfinishedSums(sums, children(place, self._count(level - 1, self.chunk_px)))
            return self._sums[place]

    def _store(self, place: Place, size: tuple[int, int], planes: Pixels) -> None:
        """Code a chunk above level 0 that lies in the corner of ``planes``, and write its shard if it is the last of it."""
        level, row, column = place
        files = self.levels[level]
        _pad(planes, size, files.is_lossy)
        per_shard = files.unit_px // files.chunk_px
        at = level, row // per_shard, column // per_shard
        shard = self._gathered(at, (row % per_shard) * per_shard + column % per_shard, self._coded(files, planes))
        if shard is None:
            return
        buffer = self._buffer(level)
        for number in sorted(shard.chunks):
            slot, length = shard.chunks[number]
            buffer.put(number, slot.data[:length])
        with self._lock:
            for slot, _ in shard.chunks.values():
                self._spare.give(slot)
        files.write(at[1], at[2], buffer)

    def _coded(self, files: ArrayFiles, planes: Pixels) -> tuple[Pixels, int] | None:
        """A chunk as coded, in memory that is used again, and its length; None for one of zeros."""
        if is_blank(planes):
            return None
        with self._lock:
            slot = self._spare.take((room_for(planes.nbytes),), np.dtype(np.uint8))
        return slot, files.encode(planes, slot.data)

    def _gathered(self, at: Place, number: int, chunk: tuple[Pixels, int] | None) -> UnfinishedShard | None:
        """Add a coded chunk to the shard at a place; the shard where that was its last."""
        level, row, column = at
        files = self.levels[level]
        with self._lock:
            if at not in self._shards:
                size = self._size(level, row, column, files.unit_px)
                self._shards[at] = UnfinishedShard(-(-size[0] // files.chunk_px) * -(-size[1] // files.chunk_px))
            shard = self._shards[at]
            shard.missing -= 1
            if chunk is not None:
                shard.chunks[number] = chunk
            return self._shards.pop(at) if not shard.missing else None

    def _read(self, corner: tuple[int, int], size: tuple[int, int], planes: Pixels) -> Iterator[Box]:
        """Chunk by chunk of a box of level 0: its place in the box, when its pixels lie in the corner of ``planes``."""
        (top, left), side = corner, self.chunk_px
        if self.reading.read_planes is not None:
            for y, x, height, width in _pieces(size, side):
                _clear(planes, height, width)
                self.reading.read_planes(top + y, left + x, height, width, planes)
                yield y, x, height, width
            return
        for y, x, height, width in _pieces(size, self.block_px):
            pixels = self.reading.read_tile(top + y, left + x, height, width)
            for i, j, h, w in _pieces((height, width), side):
                _clear(planes, h, w)
                split_planes(pixels, (i, j, h, w), planes, (0, 0), self.is_compiled)
                yield y + i, x + j, h, w

    def _planes(self, level: int) -> Pixels:
        """This worker's place for the pixels of one chunk of a level."""
        own: dict[Any, Any] = self._own.__dict__
        files = self.levels[level]
        # level 0 waits while those above are worked on
        key = "planes", level > 0, files.chunk_px
        if key not in own:
            own[key] = np.zeros((files.shape[0], files.chunk_px, files.chunk_px), files.dtype)
        found: Pixels = own[key]
        return found

    def _buffer(self, level: int) -> ShardBuffer:
        """This worker's buffer for shards of a level, empty; levels above 0 whose shards are alike share it."""
        own: dict[Any, Any] = self._own.__dict__
        files = self.levels[level]
        key = "buffer", level > 0, files.per_unit, files.chunk_px
        if key not in own:
            own[key] = files.buffer()
        buffer: ShardBuffer = own[key]
        buffer.clear()
        return buffer


def depth_first(rows: int, columns: int) -> list[tuple[int, int]]:
    """The (row, column) of a grid in the order in which fours, fours of fours and so on are completed one after the other."""
    bits = range(max(rows, columns).bit_length())

    def rank(cell: tuple[int, int]) -> int:
        return sum((2 * (cell[0] >> b & 1) + (cell[1] >> b & 1)) << 2 * b for b in bits)

    return sorted(itertools.product(range(rows), range(columns)), key=rank)


def children(place: Place, below: tuple[int, int]) -> int:
    """How many of the four chunks under a place there are, of ``below`` (rows, columns) on their level."""
    _, row, column = place
    return min(2, below[0] - 2 * row) * min(2, below[1] - 2 * column)


def _pieces(size: Sequence[int], side: int) -> Iterator[Box]:
    """(y, x, height, width) of the squares of that side which cover a box of ``size`` (y, x), depth first; ragged at its end."""
    for row, column in depth_first(-(-size[0] // side), -(-size[1] // side)):
        y, x = row * side, column * side
        yield y, x, min(side, size[0] - y), min(side, size[1] - x)


def _clear(planes: Pixels, height: int, width: int) -> None:
    """Make a chunk zero of which only that much lies in the image."""
    if (height, width) != planes.shape[1:]:
        planes[...] = 0


def _pad(planes: Pixels, size: tuple[int, int], is_lossy: bool) -> None:
    """Go on with the last row and column beyond the image where a lossy codec would else smear the jump to 0 into it."""
    height, width = size
    if is_lossy and size != planes.shape[1:]:
        planes[:, :height, width:] = planes[:, :height, width - 1 : width]
        planes[:, height:] = planes[:, height - 1 : height]
