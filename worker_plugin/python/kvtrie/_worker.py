# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""An attachment to a cache."""

from __future__ import annotations

import ctypes
import threading
import warnings
import weakref
from array import array
from ctypes import byref, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p, pointer
from types import TracebackType
from typing import Any, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Type, Union

from . import _abi
from ._library import Library
from ._memory import Memory, TokenMemory, Tokens, as_uint64
from ._sequence import Sequence
from ._types import (
    BatchItem,
    BeginResult,
    Counters,
    Flags,
    Geometry,
    Namespace,
    ProbeResult,
    Role,
    begin_options,
    begin_result,
    bounded,
)


class Prepared(NamedTuple):
    """One request of a batch that was prepared.

    shared_tokens: behind these, whole pages that earlier items of the batch compute. computed_by: for each position the
    item that computes it, or CACHED.
    """

    sequence: Sequence
    cached_tokens: int
    shared_tokens: int
    partial_tokens: int
    partial_page: int
    computed_by: List[int]


class Worker:
    """This process's attachment to a running cache: kvtrie_attach.

    cache: as in `kvtried --cache`. directory: as in `kvtried --dir`; None: the default. name: shown by
    `kvtrie workers`. timeout_ms: for the coordinator's answers; 0: 5,000. role, plane_mask, scheduler: of a plane
    writer (docs/devices.md). library: None: Library.default().

    Raises NoCoordinatorError at once when nobody serves the cache, FullError, RefusedError, TimedOutError,
    PoisonedError, CorruptError.

    A context manager that detaches at its end. Threads: any thread may call. Fork: a child's use answers StaleError; it
    attaches by itself, and must not touch page memory of its parent's.
    """

    def __init__(
        self,
        cache: str,
        *,
        directory: Optional[str] = None,
        name: Optional[str] = None,
        timeout_ms: int = 0,
        role: Role = Role.WORKER,
        plane_mask: int = 0,
        scheduler: int = 0,
        library: Optional[Library] = None,
    ) -> None:
        self.library = library or Library.default()
        self.cache = cache
        self._calls = self.library.calls
        self._check = self.library.check
        self._lock = threading.Lock()  # planes that are looked at, and the end
        self._planes: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
        self._handle = _abi.kvtrie_worker()
        options = _abi.sized(_abi.kvtrie_attach_options)
        options.cache = cache.encode()
        options.directory = directory.encode() if directory is not None else None
        options.name = name.encode() if name is not None else None
        options.timeout_ms = bounded("timeout_ms", timeout_ms, 32)
        options.role = role
        options.plane_mask = bounded("plane_mask", plane_mask, 64)
        options.scheduler = bounded("scheduler", scheduler, 64)
        self._check(self._calls.kvtrie_attach(byref(options), byref(self._handle)))
        geometry = _abi.sized(_abi.kvtrie_geometry)
        self._check(self._calls.kvtrie_get_geometry(self._handle, byref(geometry)))
        #: what the cache was made with
        self.geometry = Geometry(*(getattr(geometry, field) for field in Geometry._fields))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if not self.closed:
            self.detach()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and handle.id:
            # A view of a page holds the worker, so there is none.
            self._calls.kvtrie_detach(handle)
            warnings.warn(f"kvtrie: a worker was not detached: {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        return f"<kvtrie.Worker of {self.cache!r}>"

    @property
    def closed(self) -> bool:
        """Whether it detached."""
        return not self._handle.id

    def detach(self) -> None:
        """Releases every sequence, unmaps the cache, gives the slot back: kvtrie_detach.

        Raises BufferError, and changes nothing, while a memoryview or an array of a page is alive: its memory would go.
        BusyError while another thread is inside a call of this worker.
        """
        with self._lock:
            if len(self._planes):
                raise BufferError("views of pages are still in use: delete them (memoryviews, arrays) before detach")
            self._check(self._calls.kvtrie_detach(self._handle))
            self._handle.id = 0

    # Namespaces

    def open_namespace(self, fields: Mapping[str, str], label: Optional[str] = None) -> Namespace:
        """Finds or makes the namespace of these fields: all that must be equal before KV may be shared.

        At most 768 bytes in all. label: for people. Raises FullError; when it is new, what asking the coordinator may.
        """
        table = (_abi.kvtrie_field * len(fields))()
        for row, (key, value) in zip(table, fields.items()):
            row.key, row.value = key.encode(), value.encode()
        made = _abi.kvtrie_namespace()
        self._check(
            self._calls.kvtrie_open_namespace(
                self._handle, table, len(fields), label.encode() if label is not None else None, byref(made)
            )
        )
        return Namespace(made.id)

    # Sequences

    def begin(
        self,
        namespace: Namespace,
        tokens: Tokens,
        *,
        flags: int = Flags.NONE,
        request_tag: int = 0,
        retention_ticks: int = 0,
        hint: int = 0,
        priority: int = 0,
    ) -> Sequence:
        """Matches the longest cached prefix of the tokens and leases it: kvtrie_begin. The sequence's hit says what.

        tokens: an array('I'), a numpy array, anything with the buffer protocol, or ints; 32-bit contiguous memory is
        read where it is. With Flags.TOKENS_STAY it is not copied either: leave it unchanged until release or append.
        Raises StaleError (of the namespace: open it again), FullError, NotNowError, CorruptError.
        """
        memory = TokenMemory(tokens)
        options = begin_options(flags, request_tag, retention_ticks, hint, priority)
        result = _abi.sized(_abi.kvtrie_begin_result)
        made = _abi.kvtrie_sequence()
        self._check(
            self._calls.kvtrie_begin(
                self._handle,
                _abi.kvtrie_namespace(namespace.id),
                memory.address,
                memory.count,
                byref(options),
                byref(result),
                byref(made),
            )
        )
        return Sequence(self, made.id, begin_result(result), memory if flags & Flags.TOKENS_STAY else None)

    def prepare_batch(
        self, items: Iterable[BatchItem], *, wait_ms: int = 0, flags: int = Flags.NONE
    ) -> List[Prepared]:
        """Begins and allocates for all items, or for none: kvtrie_prepare_batch. 1 to 1,024 items.

        Items that begin with the same uncached whole pages share them: the first computes and publishes. Raises what
        begin and allocate may.
        """
        items = list(items)
        table = (_abi.kvtrie_batch_item * len(items))()
        memories: List[TokenMemory] = []
        computed: List[Any] = []
        for row, item in zip(table, items):
            memory = TokenMemory(item.tokens)
            total = memory.count if item.total_tokens is None else bounded("total_tokens", item.total_tokens, 64)
            positions = -(-total // self.geometry.tokens_per_page)
            if positions > self.geometry.pages:
                positions = 0  # KVTRIE_E_NEVER: no room is needed
            numbers = (c_uint32 * positions)()
            options = begin_options(item.flags, item.request_tag, item.retention_ticks, item.hint, item.priority)
            memories.append(memory)
            computed.append(numbers)
            row.size = ctypes.sizeof(row)
            row.name_space.id = item.namespace.id
            row.tokens = memory.address
            row.token_count = memory.count
            row.total_tokens = total
            row.options = pointer(options)
            row.computed_by = ctypes.cast(numbers, ctypes.POINTER(c_uint32)) if positions else None
        patience = _abi.sized(_abi.kvtrie_allocate_options)
        patience.flags = bounded("flags", flags, 32)
        patience.wait_ms = bounded("wait_ms", wait_ms, 32)
        self._check(self._calls.kvtrie_prepare_batch(self._handle, table, len(items), byref(patience)))
        made: List[Prepared] = []
        for row, item, memory, numbers in zip(table, items, memories, computed):
            hit = BeginResult(
                row.cached_tokens,
                row.cached_tokens // self.geometry.tokens_per_page,
                0,
                0,
                row.partial_tokens,
                row.partial_page,
            )
            stays = memory if item.flags & Flags.TOKENS_STAY else None
            sequence = Sequence(self, row.sequence.id, hit, stays)
            made.append(
                Prepared(
                    sequence, row.cached_tokens, row.shared_tokens, row.partial_tokens, row.partial_page, list(numbers)
                )
            )
        return made

    # Estimates

    def probe(self, namespace: Namespace, tokens: Tokens) -> ProbeResult:
        """How much of the tokens is probably cached, for routing: nothing is protected, nothing counts as used."""
        memory = TokenMemory(tokens)
        result = _abi.sized(_abi.kvtrie_probe_result)
        space = _abi.kvtrie_namespace(namespace.id)
        self._check(self._calls.kvtrie_probe(self._handle, space, memory.address, memory.count, byref(result)))
        return ProbeResult(*(getattr(result, field) for field in ProbeResult._fields))

    def hash_tokens(self, namespace: Namespace, tokens: Tokens) -> "array[int]":
        """Hashes of the prefixes that end with each whole page, for probe_hashes: an array('Q')."""
        memory = TokenMemory(tokens)
        hashes = array("Q", bytes(8 * (memory.count // self.geometry.tokens_per_page)))
        room = hashes.buffer_info()[0]
        count = c_size_t()
        space = _abi.kvtrie_namespace(namespace.id)
        self._check(
            self._calls.kvtrie_hash_tokens(
                self._handle, space, memory.address, memory.count, room, len(hashes), byref(count)
            )
        )
        return hashes

    def probe_hashes(self, namespace: Namespace, hashes: Union[Iterable[int], Any]) -> ProbeResult:
        """probe by hashes that were computed once; pending_pages is 0."""
        memory = Memory(as_uint64(hashes))
        result = _abi.sized(_abi.kvtrie_probe_result)
        space = _abi.kvtrie_namespace(namespace.id)
        count = memory.nbytes // 8
        self._check(self._calls.kvtrie_probe_hashes(self._handle, space, memory.address, count, byref(result)))
        return ProbeResult(*(getattr(result, field) for field in ProbeResult._fields))

    # Page memory

    def page_address(self, page: int, plane: int = 0) -> int:
        """Address of the page's first byte; good until detach, which does not know who uses it: prefer page().

        Raises InvalidError, also for planes in device memory.
        """
        address = c_void_p()
        self._check(
            self._calls.kvtrie_page_address(
                self._handle, bounded("page", page, 32), bounded("plane", plane, 32), byref(address)
            )
        )
        return address.value or 0

    def plane(self, plane: int = 0, *, writable: bool = False) -> memoryview:
        """All pages of a plane, without a copy: bytes [pages, page_bytes]; numpy.asarray takes it.

        Pages that are shared or published are for reading. writable: for own unpublished pages; never of a queued
        device, whose planes are mapped to read only.
        """
        shape = [self.geometry.pages, self.geometry.page_bytes]
        view = memoryview(self._plane(plane)).cast("B").cast("B", shape)
        return view if writable else view.toreadonly()

    def page(self, page: int, plane: int = 0, *, writable: bool = False) -> memoryview:
        """The bytes of a page in a plane, without a copy. As plane(); detach waits until it is deleted."""
        if not 0 <= page < self.geometry.pages:
            self.page_address(page, plane)  # says what is wrong
        size = self.geometry.page_bytes
        view = memoryview(self._plane(plane)).cast("B")[page * size : (page + 1) * size]
        return view if writable else view.toreadonly()

    def page_array(
        self,
        page: int,
        plane: int = 0,
        *,
        dtype: Any = "uint8",
        shape: Optional[Tuple[int, ...]] = None,
        writable: bool = False,
    ) -> Any:
        """The same as a numpy array of that dtype and shape (None: one dimension). Needs numpy."""
        import numpy

        array = numpy.frombuffer(self.page(page, plane, writable=writable), dtype=dtype)
        return array if shape is None else array.reshape(shape)

    def _plane(self, plane: int) -> Any:
        # One exporter a plane, known weakly: it lives as long as a view does, and holds the worker.
        with self._lock:
            known = self._planes.get(plane)
            if known is None:
                address = self.page_address(0, plane)
                kind: Any = c_uint8 * (self.geometry.pages * self.geometry.page_bytes)
                known = kind.from_address(address)
                known.worker = self
                self._planes[plane] = known
            return known

    # The cache

    def evict(self, namespace: Optional[Namespace] = None, pages_max: int = 0) -> int:
        """Asks the coordinator to evict pages that nobody uses (pages_max 0: all), of one namespace or of all.

        How many went. Raises NoCoordinatorError, RefusedError, TimedOutError, NotFoundError, StaleError.
        """
        evicted = c_uint64()
        space = _abi.kvtrie_namespace(namespace.id if namespace is not None else 0)
        self._check(
            self._calls.kvtrie_evict(self._handle, space, bounded("pages_max", pages_max, 64), byref(evicted))
        )
        return evicted.value

    def flush(self, namespace: Namespace) -> None:
        """Asks the coordinator that nothing published before is matched any more: the model got new weights."""
        self._check(self._calls.kvtrie_flush(self._handle, _abi.kvtrie_namespace(namespace.id)))

    def counters(self) -> Counters:
        """What this worker did since it attached, by the names of kvtrie_counters."""
        counters = _abi.sized(_abi.kvtrie_counters)
        self._check(self._calls.kvtrie_get_counters(self._handle, byref(counters)))
        return {name: getattr(counters, name) for name in _abi.COUNTERS}

    def drive_clock(self, tick: int) -> None:
        """Raises the clock of a cache made with --clock driven. InvalidError on other caches."""
        self._check(self._calls.kvtrie_drive_clock(self._handle, bounded("tick", tick, 32)))

    # Devices and ranks: docs/devices.md

    def id(self) -> int:
        """This attachment's id for other processes: kvtrie_worker_id."""
        number = c_uint64()
        self._check(self._calls.kvtrie_worker_id(self._handle, byref(number)))
        return number.value

    def writer_over(self, id: int) -> bool:
        """Whether the attachment of that id is over and nothing that it asked a device for is under way."""
        code = self._calls.kvtrie_writer_over(self._handle, bounded("id", id, 64))
        if code == _abi.CODES["KVTRIE_E_BUSY"]:
            return False
        self._check(code)
        return True

    def plane_descriptor(self, plane: int) -> int:
        """Of caches with --device cuda: a new file descriptor of the plane, the caller's to close."""
        descriptor = c_int(-1)
        self._check(
            self._calls.kvtrie_plane_descriptor(self._handle, bounded("plane", plane, 32), byref(descriptor))
        )
        return descriptor.value

    def queue_copy(self, page: int, plane: int, offset: int, source: Any) -> None:
        """Of caches with --device queued: asks for the bytes of source to be written into a page, later.

        They are copied before this returns. Raises NotNowError when 8 are on their way.
        """
        memory = Memory(source)
        try:
            self._check(
                self._calls.kvtrie_queue_copy(
                    self._handle,
                    bounded("page", page, 32),
                    bounded("plane", plane, 32),
                    bounded("offset", offset, 64),
                    memory.address,
                    memory.nbytes,
                )
            )
        finally:
            memory.close()

    def wait_copies(self, timeout_ms: int) -> None:
        """Until all that this attachment asked for is written. Raises TimedOutError, PoisonedError."""
        self._check(self._calls.kvtrie_wait_copies(self._handle, bounded("timeout_ms", timeout_ms, 32)))
