# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""Addresses of what Python objects keep in memory, without a copy where none is needed."""

from __future__ import annotations

import ctypes
from array import array
from typing import Any, List, Sequence, Tuple, Union

# Tokens: an array('I'), a numpy array, any object with the buffer protocol, or a sequence of ints.
Tokens = Union[Sequence[int], "array[int]", memoryview, Any]

_PyBUF_WRITABLE = 0x0001
_PyBUF_FORMAT = 0x0004
_PyBUF_ND = 0x0008
_PyBUF_STRIDES = 0x0010 | _PyBUF_ND

assert array("I").itemsize == 4  # a token, on every platform that kvtrie runs on


class _PyBuffer(ctypes.Structure):
    # Py_buffer of the interpreter's C interface
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_release_buffer.restype = None


class Memory:
    """Holds the buffer of an object: it can neither move nor go while this lives.

    address, nbytes: of contiguous memory. With strides=True it may have gaps: address is that of the first element.
    """

    __slots__ = ("_view", "_held", "address", "nbytes")

    def __init__(self, source: Any, *, writable: bool = False, strides: bool = False) -> None:
        self._held = False
        self._view = _PyBuffer()
        flags = (_PyBUF_WRITABLE if writable else 0) | ((_PyBUF_STRIDES | _PyBUF_FORMAT) if strides else 0)
        _get_buffer(source, ctypes.byref(self._view), flags)  # raises TypeError or BufferError
        self._held = True
        self.address: int = self._view.buf or 0
        self.nbytes: int = self._view.len

    def shape(self) -> List[int]:
        return [int(self._view.shape[i]) for i in range(self._view.ndim)]

    def strides(self) -> List[int]:
        return [int(self._view.strides[i]) for i in range(self._view.ndim)]

    def itemsize(self) -> int:
        return int(self._view.itemsize)

    def close(self) -> None:
        if self._held:
            self._held = False
            _release_buffer(ctypes.byref(self._view))

    def __del__(self) -> None:
        self.close()


class TokenMemory:
    """Tokens as the library takes them: address and count. Lives at least as long as the call."""

    __slots__ = ("_memory", "address", "count")

    def __init__(self, tokens: Tokens) -> None:
        self._memory = Memory(as_uint32(tokens))
        self.count: int = self._memory.nbytes // 4
        self.address: int = self._memory.address


def as_uint32(tokens: Any) -> Any:
    """The tokens as contiguous memory of 32-bit integers: the object itself where it is that already, else a copy.

    int32 memory is taken as it is. Raises TypeError for what is no list of integers (bytes, too: cast a memoryview of
    them to "I"), OverflowError for a token below 0 or above 2**32 - 1.
    """
    try:
        view = memoryview(tokens)
    except TypeError:
        if not hasattr(tokens, "__array__"):
            return array("I", tokens)
        tokens = tokens.__array__()  # a tensor, say, in host memory
        view = memoryview(tokens)
    kind = view.format[1:] if view.format[:1] in ("@", "=", "<") else view.format
    if view.ndim != 1:
        raise TypeError(f"tokens have 1 dimension, not {view.ndim}")
    if kind in ("I", "i", "L", "l") and view.itemsize == 4:
        if view.c_contiguous:
            return tokens
        copy = array("I")
        copy.frombytes(view.tobytes())
        return copy
    if kind in ("H", "h", "Q", "q", "L", "l", "N", "n") and kind == view.format:
        return array("I", view)
    raise TypeError(
        f"tokens are integers of 16, 32 or 64 bits in native order, not items of format {view.format!r}"
        + ("; cast a memoryview of bytes to 'I'" if view.itemsize == 1 else "")
    )


def as_uint64(hashes: Any) -> Any:
    """As as_uint32, for the 64-bit hashes of Worker.hash_tokens."""
    try:
        view = memoryview(hashes)
    except TypeError:
        return array("Q", hashes)
    if view.itemsize == 8 and view.format.lstrip("@=<") in ("Q", "L") and view.c_contiguous and view.ndim == 1:
        return hashes
    raise TypeError(f"hashes are contiguous unsigned integers of 64 bits, not items of format {view.format!r}")


def strided_extent(shape: Sequence[int], strides: Sequence[int], item_bytes: int) -> Tuple[int, int]:
    """First and one past the last byte, relative to element 0, that an array of this shape touches."""
    low = sum(min(0, (count - 1) * stride) for count, stride in zip(shape, strides))
    high = sum(max(0, (count - 1) * stride) for count, stride in zip(shape, strides))
    return low, high + item_bytes
