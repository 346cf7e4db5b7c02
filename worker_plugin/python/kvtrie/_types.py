# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""What calls take and answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from . import _abi
from ._memory import Memory, Tokens

NO_PAGE = _abi.NO_PAGE  #: position without a page: it was given back
CACHED = _abi.CACHED  #: Prepared.computed_by: nobody has to


class Flags(enum.IntFlag):
    """Options of begin, allocate, fork and prepare_batch; kvtrie.h says what each does."""

    NONE = 0
    NO_READ = _abi.ENUMERATORS["KVTRIE_NO_READ"]
    NO_PUBLISH = _abi.ENUMERATORS["KVTRIE_NO_PUBLISH"]
    NO_WAIT = _abi.ENUMERATORS["KVTRIE_NO_WAIT"]
    PARTIAL = _abi.ENUMERATORS["KVTRIE_PARTIAL"]
    NO_COPY = _abi.ENUMERATORS["KVTRIE_NO_COPY"]
    TOKENS_STAY = _abi.ENUMERATORS["KVTRIE_TOKENS_STAY"]


class Role(enum.IntEnum):
    """What an attachment is for."""

    WORKER = _abi.ENUMERATORS["KVTRIE_ROLE_WORKER"]
    PLANE_WRITER = _abi.ENUMERATORS["KVTRIE_ROLE_PLANE_WRITER"]


class PageState(enum.IntEnum):
    """Of a sequence's own page; write only PRIVATE and ANNOUNCED ones."""

    PRIVATE = _abi.ENUMERATORS["KVTRIE_PAGE_PRIVATE"]
    ANNOUNCED = _abi.ENUMERATORS["KVTRIE_PAGE_ANNOUNCED"]
    PUBLISHED = _abi.ENUMERATORS["KVTRIE_PAGE_PUBLISHED"]
    INCOMPLETE = _abi.ENUMERATORS["KVTRIE_PAGE_INCOMPLETE"]
    BORROWED = _abi.ENUMERATORS["KVTRIE_PAGE_BORROWED"]


class Namespace(NamedTuple):
    """Handle of Worker.open_namespace; good until that worker detaches."""

    id: int


class Geometry(NamedTuple):
    """What the cache was made with. page_bytes: of one page in one plane; tick_ns: length of a tick."""

    pages: int
    page_bytes: int
    tokens_per_page: int
    planes: int
    tick_ns: int


class BeginResult(NamedTuple):
    """What begin or wait_pending matched: kvtrie_begin_result."""

    cached_tokens: int
    cached_pages: int
    pending_pages: int
    pending_age_ticks: int
    partial_tokens: int
    partial_page: int


class Waited(NamedTuple):
    """Of wait_pending. complete: nobody computes the next page any more; False: some did not come in time."""

    complete: bool
    hit: BeginResult


class ProbeResult(NamedTuple):
    cached_tokens: int
    cached_pages: int
    pending_pages: int


class PublishResult(NamedTuple):
    """kvtrie_publish_result: tokens of the path that all can match now, and pages of this call."""

    published_tokens: int
    pages_published: int
    pages_private: int
    incomplete_tokens: int


class OwnPage(NamedTuple):
    position: int
    page: int
    state: PageState


#: Counters since attach, of one worker: kvtrie_counters as a dict.
Counters = Dict[str, int]


@dataclass(frozen=True)
class Layout:
    """Where the engine has K and V of a token: layers x kv x tokens x heads of head_bytes each; strides in bytes.

    Layout.of(array) makes it of an array with these five dimensions.
    """

    layers: int
    kv: int
    heads: int
    head_bytes: int
    layer_stride: int
    kv_stride: int
    token_stride: int
    head_stride: int

    @staticmethod
    def of(array: Any) -> "Layout":
        """Of an array [layers, kv, tokens, heads, items of a head], which may have gaps but within a head.

        Raises ValueError when it has other dimensions, TypeError when it has no buffer.
        """
        memory = Memory(array, strides=True)
        try:
            shape, strides, item = memory.shape(), memory.strides(), memory.itemsize()
        finally:
            memory.close()
        if len(shape) != 5 or (shape[4] > 1 and strides[4] != item):
            raise ValueError(f"an array [layers, kv, tokens, heads, items of a head] with dense heads, not {shape}")
        return Layout(
            layers=shape[0],
            kv=shape[1],
            heads=shape[3],
            head_bytes=shape[4] * item,
            layer_stride=strides[0],
            kv_stride=strides[1],
            token_stride=strides[2],
            head_stride=strides[3],
        )

    def strided(self, tokens: int) -> Tuple[List[int], List[int]]:
        """Counts and strides of the dimensions outside a head, for `tokens` tokens."""
        return (
            [self.layers, self.kv, tokens, self.heads],
            [self.layer_stride, self.kv_stride, self.token_stride, self.head_stride],
        )


@dataclass
class BatchItem:
    """One request of Worker.prepare_batch. total_tokens: to allocate for; None: as many as tokens."""

    namespace: Namespace
    tokens: Tokens
    total_tokens: Optional[int] = None
    flags: Flags = Flags.NONE
    request_tag: int = 0
    retention_ticks: int = 0
    hint: int = 0
    priority: int = 0


def begin_options(
    flags: int, request_tag: int, retention_ticks: int, hint: int, priority: int
) -> "_abi.kvtrie_begin_options":
    options = _abi.sized(_abi.kvtrie_begin_options)
    options.flags = bounded("flags", flags, 32)
    options.request_tag = bounded("request_tag", request_tag, 32)
    options.retention_ticks = bounded("retention_ticks", retention_ticks, 32)
    options.hint = bounded("hint", hint, 8)
    options.priority = bounded("priority", priority, 8)
    made: _abi.kvtrie_begin_options = options
    return made


def begin_result(result: "_abi.kvtrie_begin_result") -> BeginResult:
    return BeginResult(*(getattr(result, name) for name in BeginResult._fields))


def bounded(name: str, value: int, bits: int) -> int:
    """ctypes cuts numbers that are too large; this refuses them: OverflowError."""
    if not 0 <= value < 1 << bits:
        raise OverflowError(f"{name} is 0 to 2**{bits} - 1, not {value}")
    return value
