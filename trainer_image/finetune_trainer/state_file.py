"""Tensors in the safetensors layout, put together in memory that is reused, without holding the interpreter's lock.

``safetensors.torch.save`` copies everything twice inside the lock: 480 MB of state hold up the training thread for
a second or more, though a background thread writes them. Reading is left to the library, which also checks.

Layout (safetensors 0.4): 8 bytes little-endian length of the header, the header in JSON padded with blanks, the data.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_SPARE = 1024 * 1024
"""Bytes; the history of losses makes every state a little longer than the one before."""


class StateFile:
    """One buffer, overwritten by every call."""

    def __init__(self) -> None:
        self._buffer: NDArray[np.uint8] = np.empty(0, np.uint8)

    def lay_out(self, tensors: dict[str, Tensor]) -> memoryview:
        """The bytes of a safetensors file; valid until the next call.

        Raises:
            KeyError: a dtype that no state has.
        """
        # Wide types first, so that every tensor is aligned.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        header, end = {}, 0
        for name, tensor in ordered:
            begin, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        buffer = self._room(start + end)
        buffer[:8] = np.frombuffer(len(text).to_bytes(8, "little"), np.uint8)
        buffer[8:start] = np.frombuffer(text, np.uint8)
        for _, tensor in ordered:
            size = tensor.numel() * tensor.element_size()
            buffer[start : start + size] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            start += size
        return buffer.data

    def _room(self, size: int) -> NDArray[np.uint8]:
        if self._buffer.size < size:
            self._buffer = np.empty(size + _SPARE, np.uint8)
        return self._buffer[:size]
