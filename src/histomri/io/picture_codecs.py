"""Chunks stored as pictures, JPEG or JPEG XL: Zarr 3 codecs under the names that the package imagecodecs-zarr gives them.

Zarr 3 has no agreed codec for either. Python programs that read Zarr through zarr-python open such arrays once
``imagecodecs-zarr`` is installed beside it (Python 3.12 or newer); here the class below opens them, which importing this module
registers. A chunk (c, y, x) of one or three channels is transposed to (y, x, c), as pictures have it, and coded by imagecodecs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import get_codec_class, register_codec

Pixels = NDArray[Any]
PICTURES = ("jpeg", "jpegxl")
# quality 90 and halved colour are what scanners write; effort 1 of JPEG XL codes nearly as fast as zstd
OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"level": 90, "subsampling": "420"},
    "jpegxl": {"effort": 1, "lossless": True},
}
KNOWN = {
    "jpeg": {"level", "subsampling", "optimize", "smoothing"},
    "jpegxl": {"level", "effort", "distance", "lossless", "decodingspeed", "usecontainer", "numthreads"},
}


def encode_picture(codec: str, pixels: Pixels, options: dict[str, Any]) -> bytes:
    """Code pixels (y, x, c)."""
    import imagecodecs

    picture = np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    encoders: dict[str, Callable[..., Any]] = {"jpeg": imagecodecs.jpeg8_encode, "jpegxl": imagecodecs.jpegxl_encode}
    return bytes(encoders[codec](picture, **options))


def decode_picture(codec: str, data: Any, out: Pixels | None = None) -> Pixels:
    """Pixels (y, x), or (y, x, c). Raises whatever the decoder does on bad bytes.

    A picture that does not fit ``out``, of the same axes, raises ``ValueError`` before memory is taken for its pixels.
    """
    import imagecodecs

    decoders: dict[str, Callable[..., Any]] = {"jpeg": imagecodecs.jpeg8_decode, "jpegxl": imagecodecs.jpegxl_decode}
    return np.asarray(decoders[codec](data, out=out))


@dataclass(frozen=True)
class PictureCodec(ArrayBytesCodec):
    """An array (y, x, c) as one picture; ``codec`` is one of ``PICTURES``, ``options`` those of its encoder."""

    is_fixed_size = False
    codec: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PictureCodec:
        """From a codec's entry in an array's metadata. Raises ``ValueError`` for options that are not known here."""
        codec = str(data["name"]).removeprefix("imagecodecs_")
        options = dict(data.get("configuration") or {})
        if strange := sorted(set(options) - KNOWN[codec]):
            raise ValueError(f"the codec {data['name']} is stored with {', '.join(strange)}: install imagecodecs-zarr to read it")
        return cls(codec, tuple(sorted(options.items())))

    def to_dict(self) -> dict[str, Any]:
        """The codec's entry in an array's metadata."""
        return {"name": f"imagecodecs_{self.codec}", "configuration": dict(self.options)}

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        shape = chunk_spec.shape[:-1] if chunk_spec.shape[-1] == 1 else chunk_spec.shape
        out = np.empty(shape, chunk_spec.dtype.to_native_dtype())
        pixels = await asyncio.to_thread(decode_picture, self.codec, chunk_bytes.to_bytes(), out)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        data = await asyncio.to_thread(encode_picture, self.codec, chunk_array.as_numpy_array(), dict(self.options))
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Not known beforehand."""
        raise NotImplementedError


def _register() -> None:
    for codec in PICTURES:
        name = f"imagecodecs_{codec}"
        try:
            get_codec_class(name)
        except Exception:  # zarr's error for an unknown codec changed its type between versions
            register_codec(name, PictureCodec)


_register()
