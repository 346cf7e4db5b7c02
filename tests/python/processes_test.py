# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""Two Python processes, made by fork and exec, share a prefix; one is killed by SIGKILL where it hurts."""

from __future__ import annotations

import support

FIELDS = {"model": "shared"}
PREFIX = list(range(1000, 1000 + 64))

ENGINE = """
ns = worker.open_namespace({"model": "shared"})
tokens = list(range(1000, 1064))
sequence = worker.begin(ns, tokens)
say("cached", sequence.hit.cached_tokens)
sequence.allocate(96)
for own in sequence.own_pages():
    worker.page_array(own.page, writable=True)[:] = 100 + own.position
say("allocated", len(sequence.own_pages()))
if wait() == "publish":
    say("published", sequence.publish(64).published_tokens)
    wait()
"""


def test_a_second_process_finds_what_the_first_computed():
    with support.Cache() as cache:
        with support.Child(cache, ENGINE) as first:
            assert first.answer() == "cached 0"
            assert first.answer() == "allocated 6"
            first.tell("publish")
            assert first.answer() == "published 64"
            with support.Child(cache, ENGINE) as second:
                assert second.answer() == "cached 64"
                assert second.answer() == "allocated 2"
                with cache.worker() as here:
                    with here.begin(here.open_namespace(FIELDS), PREFIX) as sequence:
                        assert sequence.hit.cached_tokens == 64
                        first.kill()
                        second.kill()
                        # The bytes are the first process's, and stay although it is dead.
                        assert [here.page(page)[0] for page in sequence.pages()] == [100, 101, 102, 103]
                    assert support.eventually(lambda: cache.page_states()["free"] == 60)
        cache.verify()


def test_killed_while_it_computes_its_pages_come_back_and_who_waits_takes_over():
    with support.Cache() as cache:
        with support.Child(cache, ENGINE) as first:
            assert first.answer() == "cached 0"
            assert first.answer() == "allocated 6"
            with cache.worker() as here:
                ns = here.open_namespace(FIELDS)
                with here.begin(ns, PREFIX) as sequence:
                    assert sequence.hit.pending_pages == 4
                    assert not sequence.wait_pending(1).complete
                    assert sequence.page_count() == 0
                    first.kill()
                    waited = sequence.wait_pending(20000)
                    assert waited.complete and waited.hit.cached_tokens == 0
                    sequence.allocate(64)
                    assert sequence.publish(64).published_tokens == 64
                assert support.eventually(lambda: cache.page_states()["free"] == 60)
        cache.verify()


def test_the_cache_outlives_a_killed_coordinator():
    with support.Cache() as cache, cache.worker() as worker:
        ns = worker.open_namespace(FIELDS)
        cache.daemon.kill()
        cache.daemon.wait()
        with worker.begin(ns, PREFIX) as sequence:
            sequence.allocate(64)
            assert sequence.publish(64).published_tokens == 64
        assert worker.probe(ns, PREFIX).cached_tokens == 64
        try:
            worker.evict(ns)
        except support.kvtrie.NoCoordinatorError as error:
            assert isinstance(error, ConnectionError)
        else:
            raise AssertionError("there is no coordinator")
