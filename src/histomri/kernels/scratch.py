"""Memory that is used again: for what takes microseconds, new memory costs as much as the work."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_own = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """This thread's array of any content, contiguous, good until the thread asks for the same name again."""
    own: dict[Any, NDArray[Any]] = _own.__dict__
    key = name, np.dtype(dtype)
    size, held = math.prod(shape), own.get(key)
    if held is None or held.size < size:
        held = own[key] = np.empty(size, dtype)
    found: NDArray[Any] = held[:size].reshape(shape)
    return found
