"""Zarr arrays of others, read so that no chunk unfolds into more than its declared shape holds.

zarr decodes a chunk to whatever its data says: a kilobyte may become gigabytes. It also applies any codec that the metadata
name; one of Zarr 2's would run the code that a chunk holds (newer versions of numcodecs refuse that). Here only codecs are
read whose output can be bounded.
"""

from __future__ import annotations

import asyncio
import bz2
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec
from zarr.codecs._v2 import V2Codec

from histomri.io.picture_codecs import PICTURES, PictureCodec

# as of a TIFF's strips: what is decoded at once
MOST_CHUNK_BYTES = 1 << 30
# one codec's output may be another's input, longer than what it holds by the marks of that one
SLACK_BYTES = 1 << 16
BLOSC_HEAD = struct.Struct("<4BIII")
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
NUMCODECS = "numcodecs."


class UnboundedError(ValueError):
    """A chunk, or a codec of an array, that may unfold into more than the array's chunks hold."""


def bounded(array: Any) -> Any:
    """The same zarr array, opened for reading, its codecs replaced by ones that stop where a chunk is full.

    Raises
    ------
    UnboundedError
        Where its chunks are too large to be decoded at once, or coded by what is not known to keep to a size.
    """
    inner = array._async_array
    codecs = [_bounded_codec(codec) for codec in inner.codec_pipeline]
    if inner.dtype.kind not in "biuf":
        raise UnboundedError(f"its values are of type {inner.dtype}, numbers were expected")
    shape = array.chunks if isinstance(codecs[0], ShardingCodec) else array.shards or array.chunks
    size = math.prod(map(int, shape)) * inner.dtype.itemsize
    if size > MOST_CHUNK_BYTES:
        most = MOST_CHUNK_BYTES >> 20
        raise UnboundedError(f"its chunks hold {size >> 20} MiB each and are decoded whole, {most} MiB at most were expected")
    # a frozen dataclass, and no public way to choose the codecs of an array that is there
    object.__setattr__(inner, "codec_pipeline", type(inner.codec_pipeline).from_codecs(codecs))
    return array


def _bounded_codec(codec: Any) -> Any:
    """A codec that keeps to a size, in place of one of zarr's. Raises ``UnboundedError``."""
    if isinstance(codec, V2Codec):
        return _bounded_v2(codec)
    if isinstance(codec, ShardingCodec):
        own, index = ([_bounded_codec(c) for c in part] for part in (codec.codecs, codec.index_codecs))
        return replace(codec, codecs=tuple(own), index_codecs=tuple(index))
    if isinstance(codec, BytesCodec | Crc32cCodec | TransposeCodec):
        return codec
    record = codec.to_dict()
    name = str(record["name"])
    if name in (f"imagecodecs_{picture}" for picture in PICTURES):
        return PictureCodec.from_dict(record)
    return BoundedCodec(_known(name.removeprefix(NUMCODECS)))


def _bounded_v2(codec: V2Codec) -> BoundedV2:
    names = [f.codec_id for f in codec.filters or () if f.codec_id != "shuffle"]
    if names:
        raise UnboundedError(f"it is stored with the filter {names[0]}, which is not read here")
    return BoundedV2(codec.filters, None, _known(codec.compressor.codec_id) if codec.compressor else "")


def _known(name: str) -> str:
    if name not in DECODERS:
        raise UnboundedError(f"it is stored with the codec {name}; those read here are {', '.join(DECODERS)}")
    return name


def _most_bytes(spec: Any) -> int:
    """What a chunk, or the input of another of its codecs, may hold."""
    size = math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
    return int(min(size, MOST_CHUNK_BYTES) + size // 64 + SLACK_BYTES)


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """One of :data:`DECODERS`, for reading alone."""

    name: str
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        data = await asyncio.to_thread(DECODERS[self.name], chunk_bytes.to_bytes(), _most_bytes(chunk_spec))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Not known beforehand."""
        raise NotImplementedError


@dataclass(frozen=True)
class BoundedV2(V2Codec):
    """The one codec of a Zarr 2 array, for reading alone; ``name`` is one of :data:`DECODERS`, or empty."""

    name: str = ""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        if self.name:
            data = await asyncio.to_thread(DECODERS[self.name], chunk_bytes.to_bytes(), _most_bytes(chunk_spec))
            chunk_bytes = chunk_spec.prototype.buffer.from_bytes(data)
        return await super()._decode_single(chunk_bytes, chunk_spec)


# ---------------------------------------------------------------- bytes -> bytes, at most so many


def _zstd(data: bytes, most: int) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(data, out=most))


def _blosc(data: bytes, most: int) -> bytes:
    import numcodecs  # type: ignore[import-untyped]

    *_, size, block, coded = BLOSC_HEAD.unpack_from(data)
    if size > most or block > size or coded > len(data):
        raise UnboundedError(f"a chunk claims {size} bytes in blocks of {block}, {most} at most were expected")
    return bytes(numcodecs.Blosc().decode(data))


def _lz4(data: bytes, most: int) -> bytes:
    import numcodecs

    (size,) = struct.unpack_from("<i", data)
    if not 0 <= size <= most:
        raise UnboundedError(f"a chunk claims {size} bytes, {most} at most were expected")
    return bytes(numcodecs.LZ4().decode(data))


def _members(data: bytes, most: int, start: Callable[[], Any]) -> bytes:
    """What the streams that follow each other in ``data`` unfold into."""
    parts, room = [], most
    while data:
        stream = start()
        part = stream.decompress(data, room + 1)
        if len(part) > room:
            raise UnboundedError(f"a chunk unfolds into more than the {most} bytes that were expected")
        if not stream.eof:
            raise ValueError("a chunk is cut off")
        parts.append(part)
        # gzip may be padded by zeros
        room, data = room - len(part), stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _deflate(data: bytes, most: int) -> bytes:
    return _members(data, most, lambda: zlib.decompressobj(GZIP_OR_ZLIB))


def _bz2(data: bytes, most: int) -> bytes:
    return _members(data, most, bz2.BZ2Decompressor)


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "gzip": _deflate,
    "zlib": _deflate,
    "lz4": _lz4,
    "bz2": _bz2,
}
