# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""kvtrie.shortfin against a real kvtried: what a scheduler written for shortfin's class relies on, and the four faults
of that class (DESIGN.md) that must be impossible here."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import random
import threading
import warnings
import zlib
from typing import List

import numpy
import pytest
import support

import kvtrie
from kvtrie.shortfin import CacheAllocationFailure, PagePool, PageInfo, TrieCacheInfo, TriePagedAttentionCache

TPP = 16


@pytest.fixture(scope="module")
def served():
    with support.Cache(pages=64) as made:
        yield made
        made.verify()


@pytest.fixture
def cache(served):
    with served.worker() as worker:
        made = TriePagedAttentionCache(PagePool(worker, support.fields()), TPP, evict_wait_ms=2000)
        yield made
        worker.evict()


def indices(pages: List[PageInfo]) -> List[int]:
    return [page.index for page in pages]


def publish(cache, tokens):
    info = cache.lookup(tokens)
    info = cache.allocate(tokens[info.num_tokens :], info)
    info = cache.publish_pages_for_tokens(info)
    cache.release_pages(info)
    return info


def free_pages(served):
    return served.page_states()["free"]


def test_signatures_are_those_of_shortfin():
    def of(name):
        parameters = inspect.signature(getattr(TriePagedAttentionCache, name)).parameters.values()
        return [(p.name, p.default) for p in parameters if p.name != "self"]

    none = inspect.Parameter.empty
    assert of("lookup") == [("tokens", none)]
    assert of("allocate") == [
        ("tokens", none),
        ("cache_info", none),
        ("allocation_block_size", 0),
        ("evict", True),
    ]
    assert of("publish_pages_for_tokens") == [("cache_info", none), ("publish_incomplete_page", False)]
    assert of("release_pages") == [("cache_info", none)]
    assert of("free_allocated_pages") == [("page_ids", none)]
    assert of("get_allocated_pages") == [("page_ids", none)]
    assert of("evict_pages") == [("max_pages", none)]
    assert of("free_cache_pages") == of("shutdown") == []
    assert of("acquire_pages_for_tokens") == [("tokens", none), ("extra_token_slots", 0)]
    assert {field.name for field in dataclasses.fields(TrieCacheInfo)} == {
        "num_tokens",
        "tokens",
        "pages",
        "last_cached_node",
        "number_of_published_pages",
        "pool",
    }


def test_a_request_from_lookup_to_release(served, cache):
    tokens = support.unique_tokens(40)
    info = cache.lookup(tokens)
    assert (info.num_tokens, info.tokens, info.pages, info.number_of_published_pages) == (0, [], [], 0)
    assert info.pool is cache.page_pool and info.last_cached_node.page is None
    info = cache.allocate(tokens, info)
    assert (info.num_tokens, info.tokens, len(info.pages)) == (40, tokens, 3)
    info = cache.publish_pages_for_tokens(info)
    assert info.number_of_published_pages == 2 and info.last_cached_node.page == info.pages[1]
    again = cache.lookup(tokens)
    assert again.num_tokens == 32 and again.tokens == tokens[:32] and again.number_of_published_pages == 2
    assert indices(again.pages) == indices(info.pages)[:2]
    with pytest.raises(ValueError, match="Pages lost: 3 of 64"):
        cache.shutdown()
    cache.release_pages(info)
    cache.release_pages(info)  # logged
    cache.release_pages(None)
    cache.release_pages(again)
    cache.shutdown()
    assert free_pages(served) == 62
    for call in (lambda: cache.allocate([1], info), lambda: cache.publish_pages_for_tokens(info)):
        with pytest.raises(ValueError, match="released"):
            call()


def test_decoding_page_by_page(cache):
    tokens = support.unique_tokens(TPP)
    info = cache.allocate(tokens, cache.lookup(tokens))
    for step in range(40):
        token = 7000 + step
        if info.num_tokens % TPP == 0:
            info = cache.allocate([token], info)
        else:  # as shortfin's token selection does
            info.num_tokens += 1
            info.tokens.append(token)
        tokens.append(token)
    assert len(info.pages) == 4 and info.tokens == tokens
    info = cache.publish_pages_for_tokens(info)
    assert info.number_of_published_pages == 3
    cache.release_pages(info)
    assert cache.lookup(tokens).num_tokens == 48


def test_blocks_are_given_out_by_the_caller(served, cache):
    tokens = support.unique_tokens(20)
    info = cache.allocate(tokens, cache.lookup(tokens), allocation_block_size=5)
    assert len(info.pages) == 5
    ids = indices(info.pages)
    info.pages = info.pages[:2]
    assert cache.get_allocated_pages(ids[2:4]) == [PageInfo(i, cache.page_pool) for i in ids[2:4]]
    info.tokens.extend(range(20))
    info.pages.extend(cache.get_allocated_pages(ids[2:3]))
    info = cache.publish_pages_for_tokens(info)
    assert info.number_of_published_pages == 2 and indices(info.pages) == ids[:3]
    assert cache.get_allocated_pages(ids) == [PageInfo(i, cache.page_pool) for i in ids[2:]]
    before = free_pages(served)
    cache.free_allocated_pages(ids[3:] + ids[:1])  # a published page is not freed
    assert free_pages(served) == before + 2
    more = cache.allocate([1] * 10, info, allocation_block_size=2)
    assert indices(more.pages)[:3] == ids[:3] and len(more.pages) == 5
    cache.release_pages(more)


def test_beams_that_differ_stay_private(cache):
    tokens = support.unique_tokens(TPP)
    info = cache.allocate(tokens, cache.lookup(tokens))
    one = cache.allocate(list(range(16)), info, allocation_block_size=1)
    other = cache.allocate(list(range(100, 116)), info, allocation_block_size=1)
    assert len({*indices(one.pages), *indices(other.pages)}) == 3
    done = cache.publish_pages_for_tokens(other)
    assert done.number_of_published_pages == 1  # its second page is not the one that was announced for position 1
    cache.release_pages(done)
    assert cache.lookup(tokens + list(range(100, 116))).num_tokens == 16
    assert cache.lookup(tokens + list(range(16))).num_tokens == 16


def test_pages_in_another_order_are_not_published(cache):
    tokens = support.unique_tokens(3 * TPP)
    info = cache.allocate(tokens, cache.lookup(tokens), allocation_block_size=4)
    info.pages = [info.pages[i] for i in (0, 2, 1)]
    info = cache.publish_pages_for_tokens(info)
    assert info.number_of_published_pages == 1
    cache.release_pages(info)
    assert cache.lookup(tokens).num_tokens == TPP


def test_allocated_pages_are_announced(cache):
    tokens = support.unique_tokens(3 * TPP)
    info = cache.allocate(tokens, cache.lookup(tokens))
    with cache.page_pool.begin(tokens) as other:
        assert other.hit.pending_pages == 3
    cache.release_pages(info)


def test_incomplete_pages_go_on_in_a_copy(cache):
    tokens = support.unique_tokens(20)
    info = cache.allocate(tokens, cache.lookup(tokens))
    cache.page_pool.page(info.pages[1].index, writable=True)[:] = b"\x05" * 1024
    info = cache.publish_pages_for_tokens(info, publish_incomplete_page=True)
    shown = info.pages[1].index
    assert cache.get_allocated_pages([shown]) == []
    info = cache.allocate([1], info)
    assert info.pages[1].index != shown and len(info.pages) == 2
    assert bytes(cache.page_pool.page(info.pages[1].index)) == b"\x05" * 1024
    assert len(cache.get_allocated_pages(indices(info.pages))) == 1
    cache.release_pages(info)
    sequence = cache.page_pool.worker.begin(cache.page_pool.namespace, tokens, flags=kvtrie.Flags.PARTIAL)
    assert sequence.hit.cached_tokens + sequence.hit.partial_tokens == 20
    sequence.release()


def test_fault_1_allocating_evicts_nothing_that_was_matched(served, cache):
    tokens = support.unique_tokens(32 * TPP)
    publish(cache, tokens)
    info = cache.lookup(tokens)
    assert info.num_tokens == 32 * TPP
    holder = cache.allocate([4] * (10 * TPP), cache.lookup([4]))
    cache.evict_wait_ms = 50
    with pytest.raises(CacheAllocationFailure) as caught:
        cache.allocate([1] * (30 * TPP), info)  # more than there is beside what was matched
    assert isinstance(caught.value.__cause__, kvtrie.TimedOutError)
    cache.release_pages(holder)
    assert cache.lookup(tokens).num_tokens == 32 * TPP
    done = cache.allocate([1] * (32 * TPP), info)
    assert sorted(indices(done.pages)) == list(range(64))  # each page once
    with pytest.raises(CacheAllocationFailure) as caught:
        cache.allocate([1] * (40 * TPP), done)
    assert isinstance(caught.value.__cause__, kvtrie.NeverError)
    cache.release_pages(done)


def test_fault_2_a_release_frees_nobody_elses_duplicates(served, cache):
    tokens = support.unique_tokens(2 * TPP)
    one = cache.allocate(tokens, cache.lookup(tokens))
    two = cache.allocate(tokens, cache.lookup(tokens))
    third = cache.lookup(tokens)
    one = cache.publish_pages_for_tokens(one)
    two = cache.publish_pages_for_tokens(two)
    assert one.number_of_published_pages == 2
    assert not set(indices(one.pages)) & set(indices(two.pages))
    view = cache.page_pool.page(two.pages[1].index, writable=True)
    view[:] = b"\x42" * 1024
    cache.release_pages(third)
    cache.release_pages(one)
    four = cache.lookup(support.unique_tokens(1))
    four = cache.allocate([2] * (60 * TPP), four)  # all that is free
    assert not set(indices(two.pages)) & set(indices(four.pages)) and bytes(view) == b"\x42" * 1024
    del view
    cache.release_pages(four)
    cache.release_pages(two)
    assert free_pages(served) == 62


def test_fault_3_a_full_hit_is_protected(served, cache):
    tokens = support.unique_tokens(4 * TPP)
    publish(cache, tokens)
    info = cache.lookup(tokens)
    assert cache.evict_pages(100) == 0
    cache.free_cache_pages()
    assert cache.lookup(tokens).num_tokens == 4 * TPP
    other = cache.allocate([3] * (60 * TPP), cache.lookup([3]))
    assert not set(indices(other.pages)) & set(indices(info.pages))
    cache.release_pages(other)
    cache.release_pages(info)
    gc.collect()
    assert cache.evict_pages(0) == 0
    assert cache.evict_pages(1) == 1 and cache.lookup(tokens).num_tokens == 3 * TPP
    cache.free_cache_pages()
    assert cache.lookup(tokens).num_tokens == 0


def test_fault_4_leaves_are_evicted_before_their_parents(cache):
    prefix = support.unique_tokens(2 * TPP)
    publish(cache, prefix + [1] * TPP)
    publish(cache, prefix + [2] * TPP)
    found = cache.lookup(prefix + [1] * TPP)
    assert cache.evict_pages(100) == 1
    assert cache.lookup(prefix + [1] * TPP).num_tokens == 3 * TPP
    assert cache.lookup(prefix + [2] * TPP).num_tokens == 2 * TPP
    cache.release_pages(found)


def test_pages_of_an_ended_request_are_not_freed_under_the_next(cache):
    one = cache.allocate([1] * TPP, cache.lookup([1]))
    ids = indices(one.pages)
    cache.release_pages(one)
    two = cache.allocate([2] * (64 * TPP), cache.lookup([2]))
    assert set(ids) <= set(indices(two.pages))
    cache.free_allocated_pages(ids)  # late: of the first request
    assert cache.get_allocated_pages(ids) == [PageInfo(ids[0], cache.page_pool)]
    cache.release_pages(two)


def test_a_failed_allocation_takes_nothing(served, cache):
    tokens = support.unique_tokens(20)
    info = cache.lookup(tokens)
    holder = cache.allocate([1] * (60 * TPP), cache.lookup([]))
    with pytest.raises(CacheAllocationFailure) as caught:
        cache.allocate([5] * (5 * TPP), info, evict=False)
    assert isinstance(caught.value.__cause__, kvtrie.NotNowError)
    assert free_pages(served) == 4
    info = cache.allocate(tokens, info)  # other tokens than those that failed
    assert cache.publish_pages_for_tokens(info).number_of_published_pages == 1
    cache.release_pages(info)
    cache.release_pages(holder)
    assert cache.lookup(tokens).num_tokens == 16


def test_a_forgotten_lookup_keeps_nothing(cache):
    tokens = support.unique_tokens(TPP)
    publish(cache, tokens)
    info = cache.lookup(tokens)
    assert cache.evict_pages(9) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del info
        gc.collect()
    assert not caught  # shortfin's callers may do that
    assert cache.evict_pages(9) == 1


def test_after_a_flush_a_request_goes_on_unpublished(cache):
    tokens = support.unique_tokens(2 * TPP)
    info = cache.allocate(tokens, cache.lookup(tokens))
    cache.page_pool.worker.flush(cache.page_pool.namespace)
    info = cache.publish_pages_for_tokens(info)
    assert info.number_of_published_pages == 0 and len(info.pages) == 2
    cache.release_pages(info)


def test_the_earlier_form(served, cache):
    tokens = support.unique_tokens(20)
    one = cache.acquire_pages_for_tokens(tokens, extra_token_slots=20)
    assert len(one.pages) == 3 and one.cached_tokens == 0 and one.tokens == tokens
    with pytest.raises(ValueError):
        one.extend_allocation(tokens[:10])
    with pytest.raises(ValueError):
        one.publish_pages_for_tokens([9] * 20)
    with pytest.raises(ValueError):
        one.publish_pages_for_tokens(tokens + [1] * 60)
    one.extend_allocation(tokens + [8] * 30, extra_token_slots=15)
    assert len(one.pages) == 5
    one.publish_pages_for_tokens(tokens[:17])
    assert one.number_of_published_pages == 1
    one.publish_pages_for_tokens(one.tokens + [9] * 14)
    assert one.number_of_published_pages == 4
    two = cache.acquire_pages_for_tokens(numpy.array(tokens + [8] * 12, dtype=numpy.uint32))
    assert two.cached_tokens == 32 and indices(two.pages) == indices(one.pages)[:2]
    one.release_pages()
    one.release_pages()  # logged
    two.release_pages()
    with pytest.raises(CacheAllocationFailure):
        cache.acquire_pages_for_tokens([1] * (65 * TPP))
    cache.shutdown()


def test_wrong_sizes_are_refused(cache):
    for wrong in (0, -1, 17):
        with pytest.raises(ValueError):
            TriePagedAttentionCache(cache.page_pool, wrong)
    for call in (lambda: cache.allocate([1], None), lambda: cache.publish_pages_for_tokens(None)):
        with pytest.raises(ValueError, match="cannot be None"):
            call()


def page_mark(tokens: List[int], position: int) -> bytes:
    # What the bytes of this page must begin with: of all tokens up to its end.
    path = ",".join(map(str, tokens[: (position + 1) * TPP]))
    return zlib.crc32(path.encode()).to_bytes(4, "little")


def test_threads_never_read_a_wrong_page(served, cache):
    """8 threads, random requests on few prefixes: the bytes of each page are those of its tokens."""
    failures: List[BaseException] = []
    hits = [0] * 8

    def serve(number: int) -> None:
        random_ = random.Random(number)
        try:
            for _ in range(60):
                tokens = [random_.randrange(3)] * 32 + [random_.randrange(3)] * random_.choice((16, 32, 40))
                info = cache.lookup(tokens)
                for position, page in enumerate(info.pages):
                    assert bytes(cache.page_pool.page(page.index)[:4]) == page_mark(tokens, position)
                    hits[number] += 1
                start = info.number_of_published_pages
                try:
                    info = cache.allocate(tokens[info.num_tokens :], info, random_.choice((0, 0, 2)))
                except CacheAllocationFailure:
                    cache.release_pages(info)
                    continue
                for position in range(start, len(tokens) // TPP):
                    page = info.pages[position].index
                    cache.page_pool.page(page, writable=True)[:4] = page_mark(tokens, position)
                if random_.random() < 0.7:
                    info = cache.publish_pages_for_tokens(info, random_.random() < 0.3)
                if random_.random() < 0.3:
                    cache.free_allocated_pages(indices(info.pages[-1:]) if random_.random() < 0.5 else [])
                for position in range(len(tokens) // TPP):
                    held = bytes(cache.page_pool.page(info.pages[position].index)[:4])
                    if info.pages[position].index in indices(cache.get_allocated_pages(indices(info.pages))):
                        continue
                    if position < info.number_of_published_pages:
                        assert held == page_mark(tokens, position)
                cache.release_pages(info)
        except BaseException as error:  # shown by the test itself
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert min(hits) > 0
    gc.collect()
    cache.shutdown()
    cache.free_cache_pages()
    assert free_pages(served) == 64
