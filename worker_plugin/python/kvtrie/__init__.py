# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""kvtrie's worker plugin in Python: the KV pages of common prompt prefixes, shared by all processes of a host.

    with kvtrie.Worker("demo") as worker:
        ns = worker.open_namespace({"model": "my-model@rev7", "kv": "f16"})
        with worker.begin(ns, tokens) as sequence:          # sequence.hit.cached_tokens need no prefill
            sequence.allocate(len(tokens))                  # pages for the rest
            ...                                             # compute into worker.page(page, writable=True)
            sequence.publish(len(tokens))                   # now every process has its whole pages

It calls libkvtrie_worker.so through ctypes: no compiler is needed, and other Python threads run during each call. Any
thread may call; a second call on one sequence answers BusyError while the first runs. docs/python.md has a table of all
calls, docs/plugin.md says what each does, which errors it has and what it costs.
"""

from ._errors import (
    BusyError,
    CorruptError,
    Error,
    FlushedError,
    FullError,
    InvalidError,
    NeverError,
    NoCoordinatorError,
    NotFoundError,
    NotNowError,
    PoisonedError,
    RefusedError,
    StaleError,
    SystemFailure,
    TimedOutError,
)
from ._library import Library
from ._memory import Tokens
from ._sequence import Sequence
from ._types import (
    CACHED,
    NO_PAGE,
    BatchItem,
    BeginResult,
    Counters,
    Flags,
    Geometry,
    Layout,
    Namespace,
    OwnPage,
    PageState,
    ProbeResult,
    PublishResult,
    Role,
    Waited,
)
from ._worker import Prepared, Worker

__version__ = "0.1.0"

__all__ = [
    "CACHED",
    "NO_PAGE",
    "BatchItem",
    "BeginResult",
    "BusyError",
    "CorruptError",
    "Counters",
    "Error",
    "Flags",
    "FlushedError",
    "FullError",
    "Geometry",
    "InvalidError",
    "Layout",
    "Library",
    "Namespace",
    "NeverError",
    "NoCoordinatorError",
    "NotFoundError",
    "NotNowError",
    "OwnPage",
    "PageState",
    "PoisonedError",
    "Prepared",
    "ProbeResult",
    "PublishResult",
    "RefusedError",
    "Role",
    "Sequence",
    "StaleError",
    "SystemFailure",
    "TimedOutError",
    "Tokens",
    "Waited",
    "Worker",
]
