# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""kvtrie.h and kvtrie_device.h for ctypes: constants, structs, functions, nothing else.

The names are those of the headers. tests/python/abi_test.py compiles a program that prints what the C compiler makes of
the headers and compares every constant, field, size, offset and argument with what stands here.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Dict, List, Tuple, Type

API_VERSION = 2
NO_PAGE = 0xFFFFFFFF
CACHED = 0xFFFFFFFF

# kvtrie_code
CODES: Dict[str, int] = {
    "KVTRIE_OK": 0,
    "KVTRIE_E_INVALID": 1,
    "KVTRIE_E_NOT_NOW": 2,
    "KVTRIE_E_NEVER": 3,
    "KVTRIE_E_TIMEOUT": 4,
    "KVTRIE_E_STALE": 5,
    "KVTRIE_E_CORRUPT": 6,
    "KVTRIE_E_POISONED": 7,
    "KVTRIE_E_NOT_FOUND": 8,
    "KVTRIE_E_REFUSED": 9,
    "KVTRIE_E_FULL": 10,
    "KVTRIE_E_NO_COORDINATOR": 11,
    "KVTRIE_E_BUSY": 12,
    "KVTRIE_E_SYSTEM": 14,
    "KVTRIE_E_FLUSHED": 15,
}

# all other enumerators
ENUMERATORS: Dict[str, int] = {
    "KVTRIE_ROLE_WORKER": 0,
    "KVTRIE_ROLE_PLANE_WRITER": 2,
    "KVTRIE_NO_READ": 1,
    "KVTRIE_NO_PUBLISH": 2,
    "KVTRIE_NO_WAIT": 4,
    "KVTRIE_PARTIAL": 8,
    "KVTRIE_NO_COPY": 16,
    "KVTRIE_TOKENS_STAY": 32,
    "KVTRIE_PAGE_PRIVATE": 0,
    "KVTRIE_PAGE_ANNOUNCED": 1,
    "KVTRIE_PAGE_PUBLISHED": 2,
    "KVTRIE_PAGE_INCOMPLETE": 3,
    "KVTRIE_PAGE_BORROWED": 4,
}


class kvtrie_worker(Structure):
    _fields_ = [("id", c_uint64)]


class kvtrie_namespace(Structure):
    _fields_ = [("id", c_uint64)]


class kvtrie_sequence(Structure):
    _fields_ = [("id", c_uint64)]


class kvtrie_attach_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cache", c_char_p),
        ("directory", c_char_p),
        ("name", c_char_p),
        ("timeout_ms", c_uint32),
        ("role", c_uint32),
        ("plane_mask", c_uint64),
        ("scheduler", c_uint64),
    ]


class kvtrie_geometry(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pages", c_uint64),
        ("page_bytes", c_uint64),
        ("tokens_per_page", c_uint32),
        ("planes", c_uint32),
        ("tick_ns", c_uint64),
    ]


class kvtrie_field(Structure):
    _fields_ = [("key", c_char_p), ("value", c_char_p)]


class kvtrie_begin_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("request_tag", c_uint32),
        ("retention_ticks", c_uint32),
        ("hint", c_uint8),
        ("priority", c_uint8),
        ("reserved", c_uint8 * 2),
    ]


class kvtrie_begin_result(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cached_tokens", c_uint64),
        ("cached_pages", c_uint32),
        ("pending_pages", c_uint32),
        ("pending_age_ticks", c_uint32),
        ("partial_tokens", c_uint32),
        ("partial_page", c_uint32),
        ("reserved", c_uint32),
    ]


class kvtrie_allocate_options(Structure):
    _fields_ = [("size", c_size_t), ("flags", c_uint32), ("wait_ms", c_uint32)]


class kvtrie_fork_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("wait_ms", c_uint32),
        ("request_tag", c_uint32),
        ("reserved", c_uint32),
    ]


class kvtrie_batch_item(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name_space", kvtrie_namespace),
        ("tokens", c_void_p),
        ("token_count", c_size_t),
        ("total_tokens", c_uint64),
        ("options", POINTER(kvtrie_begin_options)),
        ("computed_by", POINTER(c_uint32)),
        ("sequence", kvtrie_sequence),
        ("cached_tokens", c_uint64),
        ("shared_tokens", c_uint64),
        ("partial_tokens", c_uint32),
        ("partial_page", c_uint32),
    ]


class kvtrie_probe_result(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cached_tokens", c_uint64),
        ("cached_pages", c_uint32),
        ("pending_pages", c_uint32),
    ]


class kvtrie_own_page(Structure):
    _fields_ = [("position", c_uint32), ("page", c_uint32), ("state", c_int)]


class kvtrie_layout(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layers", c_uint32),
        ("kv", c_uint32),
        ("heads", c_uint32),
        ("reserved", c_uint32),
        ("head_bytes", c_uint64),
        ("layer_stride", c_int64),
        ("kv_stride", c_int64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
    ]


class kvtrie_publish_result(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("published_tokens", c_uint64),
        ("pages_published", c_uint32),
        ("pages_private", c_uint32),
        ("incomplete_tokens", c_uint32),
        ("reserved", c_uint32),
    ]


COUNTERS: Tuple[str, ...] = tuple(
    (
    "lookups tokens_asked tokens_found pages_asked pages_hit "
    "pages_allocated failed_not_now failed_never waits "
    "pages_published duplicates stripes_passed_by buckets_full lease_fallbacks rescues "
    "releases pages_given_back corrupt_seen "
    "partial_matches partial_tokens pending_waits forks batches incomplete_published "
    "flushed_refused pages_copied pages_summed wrong_checksums"
    ).split()
)


class kvtrie_counters(Structure):
    _fields_ = [("size", c_size_t)] + [(name, c_uint64) for name in COUNTERS]


STRUCTS: Dict[str, Type[Structure]] = {
    struct.__name__: struct
    for struct in (
        kvtrie_worker,
        kvtrie_namespace,
        kvtrie_sequence,
        kvtrie_attach_options,
        kvtrie_geometry,
        kvtrie_field,
        kvtrie_begin_options,
        kvtrie_begin_result,
        kvtrie_allocate_options,
        kvtrie_fork_options,
        kvtrie_batch_item,
        kvtrie_probe_result,
        kvtrie_own_page,
        kvtrie_layout,
        kvtrie_publish_result,
        kvtrie_counters,
    )
}

_P = POINTER
_WORKER, _NS, _SEQ = kvtrie_worker, kvtrie_namespace, kvtrie_sequence
_CODE = c_int

# name: (result, arguments). Tokens, bytes and addresses are c_void_p: they come from _memory.py as numbers.
FUNCTIONS: Dict[str, Tuple[Any, List[Any]]] = {
    "kvtrie_version": (c_char_p, []),
    "kvtrie_api_version": (c_uint32, []),
    "kvtrie_last_error": (c_char_p, []),
    "kvtrie_code_name": (c_char_p, [_CODE]),
    "kvtrie_get_api": (c_void_p, [c_uint32]),
    "kvtrie_attach": (_CODE, [_P(kvtrie_attach_options), _P(_WORKER)]),
    "kvtrie_detach": (_CODE, [_WORKER]),
    "kvtrie_get_geometry": (_CODE, [_WORKER, _P(kvtrie_geometry)]),
    "kvtrie_open_namespace": (_CODE, [_WORKER, _P(kvtrie_field), c_size_t, c_char_p, _P(_NS)]),
    "kvtrie_begin": (
        _CODE,
        [_WORKER, _NS, c_void_p, c_size_t, _P(kvtrie_begin_options), _P(kvtrie_begin_result), _P(_SEQ)],
    ),
    "kvtrie_prepare_batch": (_CODE, [_WORKER, _P(kvtrie_batch_item), c_size_t, _P(kvtrie_allocate_options)]),
    "kvtrie_fork": (_CODE, [_SEQ, _P(kvtrie_fork_options), _P(_SEQ)]),
    "kvtrie_wait_pending": (_CODE, [_SEQ, c_uint32, _P(kvtrie_begin_result)]),
    "kvtrie_append": (_CODE, [_SEQ, c_void_p, c_size_t]),
    "kvtrie_allocate": (_CODE, [_SEQ, c_uint64, _P(kvtrie_allocate_options)]),
    "kvtrie_get_pages": (_CODE, [_SEQ, c_uint32, c_uint32, _P(c_uint32)]),
    "kvtrie_page_count": (_CODE, [_SEQ, _P(c_uint32)]),
    "kvtrie_own_pages": (_CODE, [_SEQ, _P(kvtrie_own_page), c_uint32, _P(c_uint32)]),
    "kvtrie_give_back": (_CODE, [_SEQ, c_uint32, c_uint32]),
    "kvtrie_page_address": (_CODE, [_WORKER, c_uint32, c_uint32, _P(c_void_p)]),
    "kvtrie_copy_in": (_CODE, [_SEQ, c_uint64, c_uint64, c_uint32, _P(kvtrie_layout), c_void_p]),
    "kvtrie_copy_out": (_CODE, [_SEQ, c_uint64, c_uint64, c_uint32, _P(kvtrie_layout), c_void_p]),
    "kvtrie_publish": (_CODE, [_SEQ, c_uint64, _P(kvtrie_publish_result)]),
    "kvtrie_publish_incomplete": (_CODE, [_SEQ, c_uint64, _P(kvtrie_publish_result)]),
    "kvtrie_release": (_CODE, [_SEQ]),
    "kvtrie_probe": (_CODE, [_WORKER, _NS, c_void_p, c_size_t, _P(kvtrie_probe_result)]),
    "kvtrie_hash_tokens": (_CODE, [_WORKER, _NS, c_void_p, c_size_t, c_void_p, c_size_t, _P(c_size_t)]),
    "kvtrie_probe_hashes": (_CODE, [_WORKER, _NS, c_void_p, c_size_t, _P(kvtrie_probe_result)]),
    "kvtrie_evict": (_CODE, [_WORKER, _NS, c_uint64, _P(c_uint64)]),
    "kvtrie_flush": (_CODE, [_WORKER, _NS]),
    "kvtrie_get_counters": (_CODE, [_WORKER, _P(kvtrie_counters)]),
    "kvtrie_drive_clock": (_CODE, [_WORKER, c_uint32]),
    # kvtrie_device.h
    "kvtrie_worker_id": (_CODE, [_WORKER, _P(c_uint64)]),
    "kvtrie_writer_over": (_CODE, [_WORKER, c_uint64]),
    "kvtrie_plane_descriptor": (_CODE, [_WORKER, c_uint32, _P(c_int)]),
    "kvtrie_queue_copy": (_CODE, [_WORKER, c_uint32, c_uint32, c_uint64, c_void_p, c_size_t]),
    "kvtrie_wait_copies": (_CODE, [_WORKER, c_uint32]),
}


def bind(path: str) -> ctypes.CDLL:
    """The library at `path` (a file, or a name that ld.so finds) with every function declared. OSError: not there.

    CDLL lets other Python threads run during each call.
    """
    library = ctypes.CDLL(path)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def sized(struct: Type[Any]) -> Any:
    """A zeroed struct whose first field says its size."""
    made = struct()
    made.size = ctypes.sizeof(struct)
    return made
