# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""One request's tokens and pages."""

from __future__ import annotations

import ctypes
import warnings
from ctypes import byref, c_uint32
from types import TracebackType
from typing import TYPE_CHECKING, Any, List, Optional, Type

from . import _abi
from ._memory import Memory, TokenMemory, Tokens, strided_extent
from ._types import BeginResult, Flags, Layout, OwnPage, PageState, PublishResult, Waited, begin_result, bounded

if TYPE_CHECKING:
    from ._worker import Worker


class Sequence:
    """A request's handle: its tokens, the pages that it shares, the pages that it owns. Made by Worker.begin.

    A context manager that releases at its end. One that is forgotten is released when Python collects it, with a
    ResourceWarning.

    Threads: any thread may call; a second call on one sequence answers BusyError while the first runs. Other Python
    threads run during each call.
    """

    def __init__(self, worker: "Worker", handle: int, hit: BeginResult, held: Optional[TokenMemory] = None) -> None:
        self.worker = worker
        #: what begin, or the last wait_pending, matched
        self.hit = hit
        self._handle = _abi.kvtrie_sequence(handle)
        self._held = held  # tokens that the library reads where they are (Flags.TOKENS_STAY)
        self._calls = worker.library.calls
        self._check = worker.library.check

    def __enter__(self) -> "Sequence":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and handle.id and not self.worker.closed:
            self._calls.kvtrie_release(handle)
            warnings.warn(f"kvtrie: a sequence was not released: {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<kvtrie.Sequence {self._handle.id:#x}>"

    @property
    def id(self) -> int:
        """The C interface's handle; 0 once it is released."""
        handle: int = self._handle.id
        return handle

    @property
    def closed(self) -> bool:
        """Whether it was released."""
        return not self._handle.id or self.worker.closed

    def close(self) -> None:
        """release(), unless it was released or its worker detached."""
        if not self.closed:
            self.release()

    def release(self) -> None:
        """Own unpublished pages are free again, published ones stay cached and lose this protection: kvtrie_release.

        A device must have ended to write them. Raises StaleError when it was released, BusyError.
        """
        self._check(self._calls.kvtrie_release(self._handle))
        self._handle.id = 0
        self._held = None

    def wait_pending(self, time_ms: int) -> Waited:
        """Waits for the next pages as long as others compute them, and matches them; up to time_ms milliseconds.

        After begin, before allocate. Raises FlushedError, FullError, InvalidError (it has pages of its own).
        """
        result = _abi.sized(_abi.kvtrie_begin_result)
        code = self._calls.kvtrie_wait_pending(self._handle, bounded("time_ms", time_ms, 32), byref(result))
        if code != _abi.CODES["KVTRIE_E_TIMEOUT"]:
            self._check(code)
        self.hit = begin_result(result)
        return Waited(code == 0, self.hit)

    def append(self, tokens: Tokens) -> None:
        """Adds tokens that were generated since, so that the pages which they fill can be published. Copies them."""
        memory = TokenMemory(tokens)
        self._check(self._calls.kvtrie_append(self._handle, memory.address, memory.count))
        self._held = None

    def allocate(self, total_tokens: int, *, wait_ms: int = 0, flags: int = Flags.NONE) -> None:
        """Makes sure that there are pages for total_tokens tokens, all that are missing or none: kvtrie_allocate.

        wait_ms: how long to wait for pages. flags: NO_WAIT, NO_COPY. Raises NotNowError, TimedOutError, NeverError,
        FullError, PoisonedError, CorruptError; what the sequence had it still has.
        """
        options = _abi.sized(_abi.kvtrie_allocate_options)
        options.flags = bounded("flags", flags, 32)
        options.wait_ms = bounded("wait_ms", wait_ms, 32)
        total = bounded("total_tokens", total_tokens, 64)
        self._check(self._calls.kvtrie_allocate(self._handle, total, byref(options)))

    def fork(self, *, wait_ms: int = 0, request_tag: int = 0, flags: int = Flags.NONE) -> "Sequence":
        """A second sequence with the same tokens: published pages are shared, the others copied, all or none.

        flags: NO_WAIT, NO_COPY (the caller copies). Raises NotNowError, TimedOutError, FullError.
        """
        options = _abi.sized(_abi.kvtrie_fork_options)
        options.flags = bounded("flags", flags, 32)
        options.wait_ms = bounded("wait_ms", wait_ms, 32)
        options.request_tag = bounded("request_tag", request_tag, 32)
        child = _abi.kvtrie_sequence()
        self._check(self._calls.kvtrie_fork(self._handle, byref(options), byref(child)))
        return Sequence(self.worker, child.id, self.hit, self._held)

    def page_count(self) -> int:
        """Positions: cached ones and those of allocate, up to the last that has a page."""
        count = c_uint32()
        self._check(self._calls.kvtrie_page_count(self._handle, byref(count)))
        return count.value

    def pages(self, first: int = 0, count: Optional[int] = None) -> List[int]:
        """Page numbers of positions [first, first + count), or of all from first on: the engine's block table.

        NO_PAGE where one was given back. Those of the first hit.cached_pages are for reading only.
        """
        if count is None:
            count = max(0, self.page_count() - first)
        table = (c_uint32 * bounded("count", count, 32))()
        self._check(self._calls.kvtrie_get_pages(self._handle, bounded("first", first, 32), count, table))
        return list(table)

    def own_pages(self) -> List[OwnPage]:
        """Positions behind the cached ones that have a page, with page and state."""
        count = c_uint32()
        self._check(self._calls.kvtrie_own_pages(self._handle, None, 0, byref(count)))
        while True:
            room = count.value
            table = (_abi.kvtrie_own_page * room)()
            self._check(self._calls.kvtrie_own_pages(self._handle, table, room, byref(count)))
            if count.value <= room:
                return [OwnPage(row.position, row.page, PageState(row.state)) for row in table[: count.value]]

    def give_back(self, first: int, count: int) -> None:
        """Gives own unpublished pages of these positions back. Raises InvalidError, and none was, when one is not."""
        bounded("first", first, 32)
        self._check(self._calls.kvtrie_give_back(self._handle, first, bounded("count", count, 32)))

    def publish(self, token_count: int) -> PublishResult:
        """The bytes of all whole pages of the first token_count tokens are final: makes them visible to all.

        From then on nobody may write them. Raises FlushedError (nothing was), PoisonedError, CorruptError.
        """
        return self._publish(self._calls.kvtrie_publish, token_count)

    def publish_incomplete(self, token_count: int) -> PublishResult:
        """The same, and also the page behind them with the tokens that it has. To go on, allocate first."""
        return self._publish(self._calls.kvtrie_publish_incomplete, token_count)

    def _publish(self, call: Any, token_count: int) -> PublishResult:
        result = _abi.sized(_abi.kvtrie_publish_result)
        self._check(call(self._handle, bounded("token_count", token_count, 64), byref(result)))
        return PublishResult(*(getattr(result, name) for name in PublishResult._fields))

    def copy_in(
        self, first_token: int, token_count: int, source: Any, *, plane: int = 0, layout: Optional[Layout] = None
    ) -> None:
        """Copies KV of tokens [first_token, first_token + token_count) from the engine's memory into own pages.

        source: with a layout, an object with the buffer protocol whose first element is the call's first token (or any
        bytes laid out so); without, whole pages as they are in the pool. Raises InvalidError, and nothing was copied,
        for a page that is not this sequence's to write, and ValueError when source is smaller than what is copied.
        """
        self._copy(self._calls.kvtrie_copy_in, first_token, token_count, source, plane, layout, False)

    def copy_out(
        self, first_token: int, token_count: int, target: Any, *, plane: int = 0, layout: Optional[Layout] = None
    ) -> None:
        """The other direction, out of any of the sequence's pages, into memory that can be written."""
        self._copy(self._calls.kvtrie_copy_out, first_token, token_count, target, plane, layout, True)

    def _copy(
        self, call: Any, first: int, count: int, memory_of: Any, plane: int, layout: Optional[Layout], writable: bool
    ) -> None:
        bounded("first_token", first, 64)
        bounded("token_count", count, 64)
        memory = Memory(memory_of, writable=writable, strides=layout is not None)
        try:
            described = None
            if layout is None:
                geometry = self.worker.geometry
                needed = -(-count // geometry.tokens_per_page) * geometry.page_bytes
                fits = needed <= memory.nbytes
            else:
                shape, strides = layout.strided(count)
                low, high = strided_extent(shape, strides, layout.head_bytes)
                has_low, has_high = strided_extent(memory.shape(), memory.strides(), memory.itemsize())
                fits = has_low <= low and high <= has_high
                described = _abi.sized(_abi.kvtrie_layout)
                for name in Layout.__dataclass_fields__:
                    setattr(described, name, getattr(layout, name))
                described = byref(described)
            if not fits and count:
                raise ValueError(f"the memory is smaller than what {count} tokens take")
            self._check(call(self._handle, first, count, bounded("plane", plane, 32), described, memory.address))
        finally:
            memory.close()


assert ctypes.sizeof(ctypes.c_void_p) == 8, "kvtrie is for 64-bit processes"
