# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""shortfin's TriePagedAttentionCache, with the prefix tree shared by all processes of the host.

The calls and their arguments are those of shortfin's class, so that a scheduler written for it goes on as it is:

    worker = kvtrie.Worker("demo")
    pool = PagePool(worker, {"model": "my-model@rev7", "kv": "f16"})
    cache = TriePagedAttentionCache(pool, tokens_per_page=16)
    info = cache.lookup(tokens)                                # info.num_tokens need no prefill
    info = cache.allocate(tokens[info.num_tokens:], info)      # info.pages[i].index: the block table
    ...                                                        # compute
    info = cache.publish_pages_for_tokens(info)
    cache.release_pages(info)

docs/python.md says what is different, because it was wrong there. In short: what lookup found is protected from then
on, also a full hit and while pages are evicted; releasing a request frees its own pages and nobody else's; a page with
cached children is not evicted.

Threads: any thread may call; calls on one request wait for each other, those on different ones run at the same time.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set

from ._errors import (
    CorruptError,
    FlushedError,
    FullError,
    NeverError,
    NotNowError,
    PoisonedError,
    StaleError,
    TimedOutError,
)
from ._memory import Tokens, as_uint32
from ._sequence import Sequence
from ._types import Flags, PageState
from ._worker import Worker

logger = logging.getLogger(__name__)


class CacheAllocationFailure(Exception):
    """Pages could not be had; nothing was taken.

    __cause__: kvtrie.NotNowError or TimedOutError (for now), NeverError, FullError (no lease).
    """


@dataclass(frozen=True)
class PageInfo:
    """A page of the pool: its index is the same in every plane."""

    index: int
    pool: "PagePool"


class PagePool:
    """The pages of a cache for requests of one namespace: fields as of Worker.open_namespace."""

    def __init__(self, worker: Worker, fields: Mapping[str, str], label: Optional[str] = None) -> None:
        self.worker = worker
        self._fields = dict(fields)
        self._label = label
        self.namespace = worker.open_namespace(self._fields, label)

    def __repr__(self) -> str:
        return f"PagePool({self.worker!r})"

    def total_page_count(self) -> int:
        """Pages of the whole cache."""
        return self.worker.geometry.pages

    def page(self, index: int, plane: int = 0, *, writable: bool = False) -> memoryview:
        """The page's bytes, without a copy: Worker.page."""
        return self.worker.page(index, plane, writable=writable)

    def begin(self, tokens: Any) -> Sequence:
        """Worker.begin; opens the namespace again when it lost its place."""
        try:
            return self.worker.begin(self.namespace, tokens)
        except StaleError:
            self.namespace = self.worker.open_namespace(self._fields, self._label)
            return self.worker.begin(self.namespace, tokens)


class _Request:
    # What every TrieCacheInfo of one request shares.
    def __init__(self, sequence: Sequence, tokens: List[int]) -> None:
        self.lock = threading.RLock()  # a sequence takes one call at a time
        self.sequence = sequence
        self.tokens = tokens  # that the sequence was told
        self.published = sequence.hit.cached_pages
        self.own: Dict[int, int] = {}  # position of each page that is its to write
        # Who only looked and forgets it keeps nothing.
        self.end = weakref.finalize(self, Sequence.close, sequence)


class CachedNode:
    """The deepest cached page of a request, which protects all before it; page: None for the root."""

    __slots__ = ("page", "_request")

    def __init__(self, page: Optional[PageInfo], request: _Request) -> None:
        self.page = page
        self._request = request


@dataclass
class TrieCacheInfo:
    """Tokens and pages of a request; pages[i] is for tokens [i * tokens_per_page, (i + 1) * tokens_per_page).

    number_of_published_pages: the first ones, that every process can match and nobody may write.
    """

    num_tokens: int
    tokens: List[int]
    pages: List[PageInfo]
    last_cached_node: CachedNode
    number_of_published_pages: int
    pool: PagePool


class TriePagedAttentionCache:
    """See the module. evict_wait_ms: how long allocate waits for pages that are being evicted, milliseconds.

    Raises ValueError when tokens_per_page is not the cache's.
    """

    def __init__(self, page_pool: PagePool, tokens_per_page: int, *, evict_wait_ms: int = 200) -> None:
        if tokens_per_page <= 0:
            raise ValueError("tokens_per_page must be positive")
        has = page_pool.worker.geometry.tokens_per_page
        if tokens_per_page != has:
            raise ValueError(f"the cache has {has} tokens a page, not {tokens_per_page}: kvtried --tokens-per-page")
        self.page_pool = page_pool
        self.tokens_per_page = tokens_per_page
        self.evict_wait_ms = evict_wait_ms
        self._lock = threading.Lock()  # what follows; never held during a call of the plugin
        self._requests: Set[_Request] = set()  # that allocated and were not released
        self._lookups: "weakref.WeakSet[_Request]" = weakref.WeakSet()
        self._allocated: Dict[int, _Request] = {}  # pages that are somebody's to write
        self._freed_by_release: "Counter[int]" = Counter()

    # Requests

    def lookup(self, tokens: Tokens) -> TrieCacheInfo:
        """The longest cached prefix of whole pages, protected until release_pages, or until it is forgotten.

        Raises CacheAllocationFailure when no lease is free (kvtried --leases).
        """
        memory = as_uint32(tokens)
        try:
            sequence = self.page_pool.begin(memory)
            if sequence.hit.cached_tokens < len(memory):
                # A sequence remembers its tokens, and those that allocate brings are to follow what was found.
                with sequence as whole:
                    sequence = self.page_pool.begin(memory[: whole.hit.cached_tokens])
        except FullError as error:
            raise CacheAllocationFailure(str(error)) from error
        found = [int(token) for token in memory[: sequence.hit.cached_tokens]]
        request = _Request(sequence, found)
        with self._lock:
            self._lookups.add(request)
        return self._info(request, found, self._page_infos(sequence.pages()))

    def allocate(
        self, tokens: Tokens, cache_info: TrieCacheInfo, allocation_block_size: int = 0, evict: bool = True
    ) -> TrieCacheInfo:
        """Pages for `tokens`, which follow cache_info.tokens; with a block size at least that many new pages.

        evict: wait for cached pages that nobody uses to be evicted; False: only what is free. Raises
        CacheAllocationFailure, and cache_info stays good; ValueError for a request that was released.
        """
        return self._allocate(tokens, cache_info, allocation_block_size, 0, evict)

    def publish_pages_for_tokens(
        self, cache_info: TrieCacheInfo, publish_incomplete_page: bool = False
    ) -> TrieCacheInfo:
        """Makes the whole pages of cache_info.tokens visible to every process; nobody may write them from then on.

        publish_incomplete_page: also the page behind them; its content goes on in a page that the next allocate brings.
        Pages that are not this request's at their position stay private, and all behind them; so do those of tokens
        other than the request allocated for. After a flush nothing is published: the request goes on with what it has.
        """
        return self._publish(cache_info, None, publish_incomplete_page)

    def release_pages(self, cache_info: Optional[TrieCacheInfo]) -> None:
        """Ends the request: its unpublished pages are free, published ones stay cached and lose this protection."""
        if cache_info is None:
            return
        request = cache_info.last_cached_node._request
        with request.lock:
            if request.sequence.closed:
                logger.warning("release_pages of a request that was released")
                return
            request.sequence.release()
            with self._lock:
                self._requests.discard(request)
                self._lookups.discard(request)
                for page in request.own:
                    if self._allocated.get(page) is request:  # another one may have it by now
                        del self._allocated[page]
                    self._freed_by_release[page] += 1
            request.own = {}

    # Pages by number, whatever the request

    def get_allocated_pages(self, page_ids: Iterable[int]) -> List[PageInfo]:
        """Those of the pages that were allocated and neither published nor freed."""
        with self._lock:
            return self._page_infos([page for page in page_ids if page in self._allocated])

    def free_allocated_pages(self, page_ids: Iterable[int]) -> None:
        """Frees those of the pages that were allocated and not published, before their request ends.

        Pages that their release freed already are left alone, whoever has them now; where nobody asked for them after
        their release, the next one that asks is taken for that, and what he meant comes back with his release.
        Raises kvtrie.InvalidError when a page behind one of them was announced to others and stays.
        """
        given: Dict[_Request, List[int]] = {}
        with self._lock:
            for page in page_ids:
                if self._freed_by_release[page] > 0:
                    self._freed_by_release[page] -= 1
                elif page in self._allocated:
                    given.setdefault(self._allocated[page], []).append(page)
            self._freed_by_release += Counter()  # drops those at 0
        for request, pages in given.items():
            with request.lock:
                positions = sorted({request.own[page] for page in pages if page in request.own}, reverse=True)
                while positions:
                    count = 1
                    while count < len(positions) and positions[count] == positions[0] - count:
                        count += 1
                    request.sequence.give_back(positions[count - 1], count)
                    del positions[:count]
                self._note_own(request)

    def evict_pages(self, max_pages: int) -> int:
        """Evicts up to so many pages of this namespace that nobody uses, least recently used first; how many went."""
        if max_pages <= 0:
            return 0
        return self.page_pool.worker.evict(self.page_pool.namespace, max_pages)

    def free_cache_pages(self) -> None:
        """Evicts every page of this namespace that nobody uses, in whatever process."""
        self.page_pool.worker.evict(self.page_pool.namespace)

    def shutdown(self) -> None:
        """Raises ValueError when a request that allocated was not released: its pages are lost to all others.

        What is cached stays for other processes and for the next start.
        """
        with self._lock:
            requests, lookups = list(self._requests), list(self._lookups)
        lost: Set[int] = set()
        for request in requests:
            with request.lock:
                if not request.sequence.closed:
                    lost.update(request.sequence.pages())
        if requests:
            total = self.page_pool.total_page_count()
            raise ValueError(f"Pages lost: {len(lost)} of {total} unfreed, of {len(requests)} requests not released")
        for request in lookups:
            with request.lock:
                request.sequence.close()

    # The earlier form

    def acquire_pages_for_tokens(self, tokens: Tokens, extra_token_slots: int = 0) -> "TrieAllocation":
        """lookup and allocate in one, with room for so many tokens more. Raises CacheAllocationFailure."""
        memory = as_uint32(tokens)
        found = self.lookup(memory)
        try:
            info = self._allocate(memory[found.num_tokens :], found, 0, extra_token_slots, True)
        except BaseException:
            self.release_pages(found)
            raise
        return TrieAllocation(self, info, found.num_tokens)

    # Inside

    def _page_infos(self, pages: Iterable[int]) -> List[PageInfo]:
        return [PageInfo(page, self.page_pool) for page in pages]

    def _info(self, request: _Request, tokens: List[int], pages: List[PageInfo]) -> TrieCacheInfo:
        published = min(request.published, len(pages))
        node = CachedNode(pages[published - 1] if published else None, request)
        return TrieCacheInfo(len(tokens), list(tokens), pages, node, published, self.page_pool)

    def _open(self, cache_info: TrieCacheInfo) -> _Request:
        if cache_info is None:
            raise ValueError("cache_info cannot be None")
        request = cache_info.last_cached_node._request
        if request.sequence.closed:
            raise ValueError("the request was released")
        return request

    def _allocate(
        self, tokens: Tokens, cache_info: TrieCacheInfo, block: int, extra_slots: int, evict: bool
    ) -> TrieCacheInfo:
        request = self._open(cache_info)
        with request.lock:
            sequence = request.sequence
            all_tokens = list(cache_info.tokens) + [int(token) for token in as_uint32(tokens)]
            slots = len(all_tokens) + extra_slots
            needed = -(-slots // self.tokens_per_page)
            before = sequence.pages()
            if block > 0 and len(before) + block > needed:
                needed = len(before) + block
                slots = needed * self.tokens_per_page
            try:
                sequence.allocate(
                    slots, wait_ms=self.evict_wait_ms if evict else 0, flags=Flags.NONE if evict else Flags.NO_WAIT
                )
            except (NotNowError, TimedOutError, NeverError, FullError) as error:
                raise CacheAllocationFailure(str(error)) from error
            with self._lock:
                self._requests.add(request)
            if self._tell(request, all_tokens):
                sequence.allocate(slots)  # nothing is missing: announces the pages that are full now
            self._note_own(request)
            after = sequence.pages()
            pages = self._carried(cache_info.pages, before, after)
            # With blocks the caller gives the pages out by itself, so it gets new ones only.
            pages += self._page_infos(after[len(before) if block > 0 else len(pages) :])
            return self._info(request, all_tokens, pages)

    def _publish(self, cache_info: TrieCacheInfo, count: Optional[int], incomplete: bool) -> TrieCacheInfo:
        request = self._open(cache_info)
        with request.lock:
            sequence = request.sequence
            tokens = list(cache_info.tokens)
            token_count = len(tokens) if count is None else count
            self._tell(request, tokens)
            before = sequence.pages()
            agree = min(token_count, _common(request.tokens, tokens))
            for position, (page, own) in enumerate(zip(cache_info.pages, before)):
                if page.index != own:
                    agree = min(agree, position * self.tokens_per_page)
                    break
            agree = min(agree, min(len(before), len(cache_info.pages)) * self.tokens_per_page)
            try:
                call = sequence.publish_incomplete if incomplete and agree == token_count else sequence.publish
                request.published = call(agree).published_tokens // self.tokens_per_page
            except (FlushedError, PoisonedError, CorruptError) as error:
                logger.warning("nothing was published: %s", error)
            self._note_own(request)
            return self._info(request, tokens, self._carried(cache_info.pages, before, sequence.pages()))

    def _tell(self, request: _Request, tokens: List[int]) -> bool:
        # The sequence learns the tokens that follow those that it knows. A beam with others stays private behind these.
        known = len(request.tokens)
        if len(tokens) <= known or tokens[:known] != request.tokens:
            return False
        request.sequence.append(tokens[known:])
        request.tokens = tokens
        return True

    def _carried(self, pages: List[PageInfo], before: List[int], after: List[int]) -> List[PageInfo]:
        # The caller's pages; where they were the sequence's at their position, as they are now.
        return [
            PageInfo(after[i], self.page_pool)
            if i < len(before) and i < len(after) and page.index == before[i] and after[i] != before[i]
            else page
            for i, page in enumerate(pages)
        ]

    def _note_own(self, request: _Request) -> None:
        own = {
            page.page: page.position
            for page in request.sequence.own_pages()
            if page.state in (PageState.PRIVATE, PageState.ANNOUNCED)
        }
        with self._lock:
            for page in request.own:
                if page not in own and self._allocated.get(page) is request:
                    del self._allocated[page]
            for page in own:
                self._allocated[page] = request
        request.own = own


class TrieAllocation:
    """Of acquire_pages_for_tokens: the tokens and pages of one request. Release it once."""

    def __init__(self, cache: TriePagedAttentionCache, cache_info: TrieCacheInfo, cached_tokens: int) -> None:
        self._cache = cache
        self.cache_info = cache_info
        #: the first so many tokens were cached: no prefill, and never write their pages
        self.cached_tokens = cached_tokens

    @property
    def tokens(self) -> List[int]:
        return self.cache_info.tokens

    @property
    def pages(self) -> List[PageInfo]:
        return list(self.cache_info.pages)

    @property
    def number_of_published_pages(self) -> int:
        return self.cache_info.number_of_published_pages

    def publish_pages_for_tokens(self, tokens: Tokens, *, publish_incomplete_page: bool = False) -> None:
        """Publishes the whole pages of `tokens`: the allocation's own, fewer, or more that go on from them.

        Raises ValueError when they are others, or more than there are pages for.
        """
        given = [int(token) for token in as_uint32(tokens)]
        if _common(given, self.tokens) < min(len(given), len(self.tokens)):
            raise ValueError("these are not the tokens of the allocation")
        if len(given) > len(self.cache_info.pages) * self._cache.tokens_per_page:
            raise ValueError("more tokens than the allocation has pages for: extend_allocation first")
        if len(given) > len(self.tokens):
            self.cache_info.tokens = given
        self.cache_info = self._cache._publish(self.cache_info, len(given), publish_incomplete_page)

    def extend_allocation(self, tokens: Tokens, *, extra_token_slots: int = 0) -> None:
        """Pages for all of `tokens`, which go on from the allocation's, and room for so many more.

        Raises ValueError when they do not, CacheAllocationFailure (the allocation is as before).
        """
        given = [int(token) for token in as_uint32(tokens)]
        known = len(self.tokens)
        if given[:known] != self.tokens:
            raise ValueError("the tokens must go on from those of the allocation")
        self.cache_info = self._cache._allocate(given[known:], self.cache_info, 0, extra_token_slots, True)

    def release_pages(self) -> None:
        """Ends the request; a second time is only logged."""
        self._cache.release_pages(self.cache_info)


def _common(one: List[int], other: List[int]) -> int:
    # Length of the common beginning.
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])
