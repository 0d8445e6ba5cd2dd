"""All levels of a pyramid in one pass over level 0: read a piece, store it, add it to the level above, forget it.

The tree of shards is walked depth first, each worker taking the next shard of level 0. Pixels go through a chunk at a time, small
enough to stay in the processor's cache: read, split into planes, coded, summed in fours into the shard above. Whoever completes a
shard above writes it and goes on to the one above that. What is held is one shard of sums per level and worker, however
big the image. Sums are exact, so that neither threads nor the order of shards change a bit.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.io.shards import ArrayFiles, ShardBuffer
from histomri.kernels.planes import split_planes

Pixels = NDArray[Any]
ReadTile = Callable[[int, int, int, int], Pixels]
ReadPlanes = Callable[[int, int, int, int, Pixels], None]
Progress = Callable[[int], None]
Box = tuple[int, int, int, int]


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
class Unfinished:
    """The sums (c, y, x) of a shard above level 0, and how many of its up to four parts are still missing."""

    sums: Pixels
    missing: int


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
    """Writes the ``levels`` of an image, finest first, from ``reading``; :meth:`write` does it once."""

    def __init__(self, levels: Sequence[ArrayFiles], unit_px: int, reading: Reading):
        self.levels, self.unit_px, self.reading = levels, unit_px, reading
        chunk = levels[0].chunk_px
        self.block_px = min(unit_px, -(-max(reading.block_px, chunk) // chunk) * chunk)
        self._unfinished: dict[tuple[int, int, int], Unfinished] = {}
        self._spare = SpareSums()
        self._lock, self._failed, self._own = threading.Lock(), threading.Event(), threading.local()

    def write(self) -> None:
        """Write every level. The first exception of the reader or the disk ends the pass and is raised here."""
        order = self._shards()
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
                self._write_shard(0, *shard)
        except BaseException:
            self._failed.set()
            raise

    def _shards(self) -> Iterator[tuple[int, int]]:
        """The shards of level 0, depth first."""
        top = len(self.levels) - 1
        rows, columns = self._units(top)
        for node in itertools.product(range(rows), range(columns)):
            yield from self._below(top, *node)

    def _below(self, level: int, row: int, column: int) -> Iterator[tuple[int, int]]:
        if level == 0:
            yield row, column
            return
        for child in self._children(level, row, column):
            yield from self._below(level - 1, *child)

    def _units(self, level: int) -> tuple[int, int]:
        height, width = self.levels[level].shape[1:]
        return -(-height // self.unit_px), -(-width // self.unit_px)

    def _children(self, level: int, row: int, column: int) -> list[tuple[int, int]]:
        rows, columns = self._units(level - 1)
        pairs = itertools.product((2 * row, 2 * row + 1), (2 * column, 2 * column + 1))
        return [(r, c) for r, c in pairs if r < rows and c < columns]

    def _box(self, level: int, row: int, column: int) -> Box:
        height, width = self.levels[level].shape[1:]
        y, x = row * self.unit_px, column * self.unit_px
        return y, x, min(self.unit_px, height - y), min(self.unit_px, width - x)

    def _open(self, level: int, row: int, column: int) -> Unfinished:
        """The shard of sums with that place, made when its first part comes."""
        from histomri.kernels.pyramid import sum_type

        with self._lock:
            found = self._unfinished.get((level, row, column))
            if found is None:
                files = self.levels[level]
                shape = (files.shape[0], *self._box(level, row, column)[2:])
                missing = len(self._children(level, row, column))
                sums = self._spare.take(shape, sum_type(files.dtype, level))
                found = self._unfinished[level, row, column] = Unfinished(sums, missing)
            return found

    def _write_shard(self, level: int, row: int, column: int) -> None:
        """Write one shard from the slide or from its sums, and those above that it completes."""
        sums = None if level == 0 else self._unfinished.pop((level, row, column)).sums
        parent = (level + 1, row // 2, column // 2) if level + 1 < len(self.levels) else None
        above = self._open(*parent).sums if parent else None
        self._fill((level, row, column), sums, above)
        if level == 0:
            _, _, height, width = self._box(level, row, column)
            self.reading.progress(height * width)
        if parent is None:
            return
        with self._lock:
            # ragged ones at the image's edge are of many shapes, and not worth keeping
            if sums is not None and sums.shape[1:] == (self.unit_px, self.unit_px):
                self._spare.give(sums)
            self._unfinished[parent].missing -= 1
            is_whole = not self._unfinished[parent].missing
        if is_whole:
            self._write_shard(*parent)

    def _fill(self, place: tuple[int, int, int], sums: Pixels | None, above: Pixels | None) -> None:
        """Code the chunks of a shard, add them to ``above`` (sums of the shard that it is a quarter of), write its file."""
        from histomri.kernels.pyramid import add_quads, to_pixels

        level, row, column = place
        files, shard, half = self.levels[level], self._buffer(level), self.unit_px // 2
        box, side = self._box(*place), files.chunk_px
        planes = np.zeros((files.shape[0], side, side), files.dtype)
        for piece in self._read(box, planes) if sums is None else _pieces(box[2:], side):
            y, x, height, width = piece
            if sums is not None:
                _clear(planes, height, width)
                to_pixels(sums, piece, level, planes)
            if above is not None:
                corner = (row % 2 * half + y // 2, column % 2 * half + x // 2)
                source, where = (planes, (0, 0, height, width)) if sums is None else (sums, piece)
                add_quads(source, where, above, corner)
            shard.add(y // side * (files.unit_px // side) + x // side, planes, files.encode)
        files.write(row, column, shard)

    def _read(self, box: Box, planes: Pixels) -> Iterator[Box]:
        """Chunk by chunk of a box of level 0: its place in the box, when its pixels lie in the corner of ``planes``."""
        top, left, *size = box
        side = planes.shape[1]
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
                split_planes(pixels, (i, j, h, w), planes, (0, 0))
                yield y + i, x + j, h, w

    def _buffer(self, level: int) -> ShardBuffer:
        """This worker's buffer for shards of a level; levels whose shards are alike share it."""
        own: dict[Any, ShardBuffer] = self._own.__dict__
        files = self.levels[level]
        key = files.per_unit, files.chunk_px
        if key not in own:
            own[key] = files.buffer()
        buffer = own[key]
        buffer.clear()
        return buffer


def _pieces(size: Sequence[int], side: int) -> Iterator[Box]:
    """(y, x, height, width) of the squares of that side which cover a box of ``size`` (y, x); ragged at its end."""
    for y, x in itertools.product(range(0, size[0], side), range(0, size[1], side)):
        yield y, x, min(side, size[0] - y), min(side, size[1] - x)


def _clear(planes: Pixels, height: int, width: int) -> None:
    """Make a chunk zero of which only that much lies in the image."""
    if (height, width) != planes.shape[1:]:
        planes[...] = 0
