# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""One exception class for each kvtrie_code; docs/plugin.md says for each call which it may answer."""

from __future__ import annotations

from typing import Dict, Type

from . import _abi


class Error(Exception):
    """A call of the plugin failed. str(): the library's text, which says what failed, why, and what to do.

    code: the number in kvtrie.h. After any of them the sequence, the pages and the cache are as they were before the
    call, unless its documentation says otherwise.
    """

    code: int = -1


class InvalidError(Error, ValueError):
    """An argument; nothing was changed."""


class NotNowError(Error):
    """Too few free pages now, or others waited for them first: release or queue something, or ask with wait_ms."""


class NeverError(Error):
    """More pages than the cache has: refuse the request."""


class TimedOutError(Error, TimeoutError):
    """The wait that was asked for ran out; nothing was taken."""


class StaleError(Error):
    """The object of the handle has ended: released, detached, of the parent process; or a namespace to open again."""


class CorruptError(Error):
    """Impossible bytes in the segment; begins miss from now on: detach."""


class PoisonedError(Error):
    """The segment was given up; begins miss: detach and attach again."""


class NotFoundError(Error, LookupError):
    """evict, flush: the namespace's place is another's by now; open it again."""


class RefusedError(Error):
    """The coordinator said no; the text says what to configure."""


class FullError(Error):
    """No lease slot, namespace, worker slot or handle is free."""


class NoCoordinatorError(Error, ConnectionError):
    """Nobody serves this cache."""


class BusyError(Error):
    """Another thread is inside a call on this worker or sequence."""


class SystemFailure(Error):
    """A system call failed, or there is no memory."""


class FlushedError(Error):
    """The namespace was flushed since the sequence began: finish from its own pages, release it, begin anew."""


BY_CODE: Dict[int, Type[Error]] = {}
for _name, _class in {
    "KVTRIE_E_INVALID": InvalidError,
    "KVTRIE_E_NOT_NOW": NotNowError,
    "KVTRIE_E_NEVER": NeverError,
    "KVTRIE_E_TIMEOUT": TimedOutError,
    "KVTRIE_E_STALE": StaleError,
    "KVTRIE_E_CORRUPT": CorruptError,
    "KVTRIE_E_POISONED": PoisonedError,
    "KVTRIE_E_NOT_FOUND": NotFoundError,
    "KVTRIE_E_REFUSED": RefusedError,
    "KVTRIE_E_FULL": FullError,
    "KVTRIE_E_NO_COORDINATOR": NoCoordinatorError,
    "KVTRIE_E_BUSY": BusyError,
    "KVTRIE_E_SYSTEM": SystemFailure,
    "KVTRIE_E_FLUSHED": FlushedError,
}.items():
    _class.code = _abi.CODES[_name]
    BY_CODE[_class.code] = _class


def make(code: int, text: str) -> Error:
    """The exception of a code; Error itself for a code of a newer library."""
    error = BY_CODE.get(code, Error)(text)
    error.code = code
    return error
