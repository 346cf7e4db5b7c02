# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""Worker and Sequence against a real kvtried: each call, its answers, its exceptions."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
import warnings
from array import array

import numpy
import pytest
import support

import kvtrie
from kvtrie._memory import TokenMemory, as_uint32


@pytest.fixture(scope="module")
def cache():
    with support.Cache("--planes", "2") as made:
        yield made
        made.verify()


@pytest.fixture
def worker(cache):
    with cache.worker(name="python-test") as made:
        yield made


@pytest.fixture
def ns(worker):
    made = worker.open_namespace(support.fields(), "test")
    yield made
    worker.evict(made)


def publish(worker, ns, tokens):
    """Computes the tokens' pages: each byte of a page is its position."""
    with worker.begin(ns, tokens) as sequence:
        sequence.allocate(len(tokens))
        for own in sequence.own_pages():
            for plane in range(worker.geometry.planes):
                worker.page_array(own.page, plane, writable=True)[:] = own.position
        return sequence.publish(len(tokens))


def test_what_one_published_another_attachment_finds(cache, worker, ns):
    tokens = support.unique_tokens(100)
    assert publish(worker, ns, tokens) == kvtrie.PublishResult(96, 6, 0, 0)
    with cache.worker() as other:
        with other.begin(ns_of(other, worker, ns), tokens) as miss:
            assert miss.hit.cached_tokens == 0  # another namespace
        with worker.begin(ns, tokens) as sequence:
            assert sequence.hit[:2] == (96, 6) and sequence.page_count() == 6
            for position, page in enumerate(sequence.pages()):
                assert bytes(other.page(page, 1)) == bytes([position]) * 1024
    assert worker.geometry == kvtrie.Geometry(64, 1024, 16, 2, 10**9)


def ns_of(other, worker, ns):
    return other.open_namespace(support.fields(salt="other"))


@pytest.mark.parametrize(
    "make",
    [
        lambda tokens: array("I", tokens),
        lambda tokens: memoryview(array("I", tokens)),
        lambda tokens: memoryview(array("I", tokens).tobytes()).cast("I"),
        lambda tokens: numpy.array(tokens, dtype=numpy.uint32),
        lambda tokens: numpy.array([0] + tokens, dtype=numpy.uint32)[1:],
        lambda tokens: numpy.frombuffer(array("I", tokens).tobytes(), dtype="<u4"),
        lambda tokens: numpy.array(tokens, dtype=numpy.uint32).view(numpy.int32),
        lambda tokens: (ctypes.c_uint32 * len(tokens))(*tokens),
    ],
)
def test_contiguous_32_bit_tokens_are_not_copied(worker, ns, make):
    tokens = support.unique_tokens(40)
    given = make(tokens)
    memory = TokenMemory(given)
    assert as_uint32(given) is given and memory.count == 40
    assert memory.address == numpy.asarray(memoryview(given).cast("B")).ctypes.data
    publish(worker, ns, tokens)
    assert worker.probe(ns, given).cached_tokens == 32


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        lambda tokens: [numpy.int64(token) for token in tokens],
        lambda tokens: numpy.array(tokens, dtype=numpy.int64),
        lambda tokens: array("Q", tokens),
        lambda tokens: numpy.repeat(numpy.array(tokens, dtype=numpy.uint32), 2)[::2],
        lambda tokens: type("Tensor", (), {"__array__": lambda self: numpy.array(tokens)})(),
    ],
)
def test_other_tokens_are_converted(worker, ns, make):
    tokens = support.unique_tokens(40)
    publish(worker, ns, tokens)
    assert worker.probe(ns, make(tokens)).cached_tokens == 32


@pytest.mark.parametrize("wrong", [b"0123", bytearray(16), "abcd", [1.5], numpy.zeros(4), numpy.zeros((2, 2), "u4"), 7,
                                   numpy.zeros(4, ">u4"), numpy.zeros(4, "u1"), [None]])
def test_what_are_no_tokens_is_refused(worker, ns, wrong):
    with pytest.raises(TypeError):
        worker.begin(ns, wrong)


@pytest.mark.parametrize("wrong", [[-1], [2**32], numpy.array([-1]), numpy.array([2**40])])
def test_tokens_out_of_range_are_refused(worker, ns, wrong):
    with pytest.raises(OverflowError):
        worker.begin(ns, wrong)


def test_tokens_that_stay_are_held_and_not_copied(worker, ns):
    tokens = numpy.array(support.unique_tokens(40), dtype=numpy.uint32)
    weak_count = sys.getrefcount(tokens)
    sequence = worker.begin(ns, tokens, flags=kvtrie.Flags.TOKENS_STAY)
    assert sys.getrefcount(tokens) > weak_count
    tokens[0] ^= 1  # against the rules, to see that they are read where they are
    sequence.allocate(40)
    sequence.publish(40)
    assert worker.probe(ns, tokens).cached_tokens == 32
    sequence.release()
    assert sys.getrefcount(tokens) == weak_count


def test_appended_tokens_are_published(worker, ns):
    tokens = support.unique_tokens(40)
    with worker.begin(ns, tokens[:20]) as sequence:
        sequence.append(tokens[20:])
        sequence.allocate(48)
        assert [(own.position, own.state) for own in sequence.own_pages()] == [
            (0, kvtrie.PageState.ANNOUNCED),
            (1, kvtrie.PageState.ANNOUNCED),
            (2, kvtrie.PageState.PRIVATE),
        ]
        assert sequence.publish(16).published_tokens == 16
        result = sequence.publish_incomplete(40)
        assert (result.published_tokens, result.incomplete_tokens) == (32, 8)
        assert sequence.own_pages()[2].state is kvtrie.PageState.INCOMPLETE
    with worker.begin(ns, tokens, flags=kvtrie.Flags.PARTIAL) as sequence:
        assert (sequence.hit.cached_tokens, sequence.hit.partial_tokens) == (32, 8)


def test_give_back_and_fork(worker, ns):
    tokens = support.unique_tokens(20)
    with worker.begin(ns, tokens, request_tag=3, retention_ticks=1, hint=2, priority=15) as sequence:
        sequence.allocate(80)
        assert len(sequence.pages()) == 5 and sequence.pages(3, 1) == [sequence.pages()[3]]
        sequence.give_back(3, 2)
        sequence.give_back(1, 1)
        assert sequence.pages()[1] == kvtrie.NO_PAGE and sequence.page_count() == 3
        with pytest.raises(kvtrie.InvalidError):
            sequence.pages(2, 2)
        with pytest.raises(kvtrie.InvalidError):
            sequence.give_back(1, 1)
    with worker.begin(ns, tokens) as sequence:
        sequence.allocate(20)
        worker.page_array(sequence.pages()[1], writable=True)[:] = 77
        with sequence.fork(request_tag=4) as child:
            assert child.pages()[1] != sequence.pages()[1]
            assert worker.page(child.pages()[1])[0] == 77


def test_batch_is_all_or_none_and_shares(worker, ns):
    tokens = support.unique_tokens(40)
    item = kvtrie.BatchItem(ns, tokens, 48)
    first, second = worker.prepare_batch([item, kvtrie.BatchItem(ns, array("I", tokens), request_tag=1)])
    assert (first.cached_tokens, second.shared_tokens) == (0, 32)
    assert first.computed_by == [0, 0, 0] and second.computed_by == [0, 0, 1]
    first.sequence.publish(40)
    second.sequence.publish(40)
    (third,) = worker.prepare_batch([item])
    assert third.cached_tokens == 32 and third.computed_by == [kvtrie.CACHED, kvtrie.CACHED, 0]
    for one in (first, second, third):
        one.sequence.release()
    with worker.begin(ns, []) as holder:
        holder.allocate(40 * 16)
        two = [kvtrie.BatchItem(ns, [], 20 * 16) for _ in range(2)]
        with pytest.raises(kvtrie.NotNowError):
            worker.prepare_batch(two)
        with pytest.raises(kvtrie.TimedOutError) as caught:
            worker.prepare_batch(two, wait_ms=1)
        assert isinstance(caught.value, TimeoutError)
    with pytest.raises(kvtrie.NeverError):
        worker.prepare_batch([kvtrie.BatchItem(ns, [], 40 * 16) for _ in range(2)])
    with pytest.raises(kvtrie.NeverError):
        worker.prepare_batch([kvtrie.BatchItem(ns, [], 65 * 16)])
    with pytest.raises(kvtrie.NeverError):
        worker.prepare_batch([kvtrie.BatchItem(ns, [], 2**63)])
    with pytest.raises(kvtrie.InvalidError):
        worker.prepare_batch([])
    assert worker.counters()["batches"] == 2


def test_wait_pending_waits_while_other_threads_run(worker, ns):
    tokens = support.unique_tokens(32)
    owner = worker.begin(ns, tokens)
    owner.allocate(32)
    waiter = worker.begin(ns, tokens)
    assert waiter.hit.pending_pages == 2
    assert waiter.wait_pending(0) == kvtrie.Waited(False, waiter.hit)
    started = threading.Event()
    waited = []

    def wait():
        started.set()
        waited.append(waiter.wait_pending(20000))

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    assert support.eventually(lambda: is_busy(waiter))  # it is inside, and this thread runs
    owner.publish(32)
    owner.release()
    thread.join()
    assert waited[0].complete and waited[0].hit.cached_tokens == 32 and waiter.hit == waited[0].hit
    waiter.release()


def is_busy(sequence):
    try:
        sequence.page_count()
    except kvtrie.BusyError:
        return True
    return False


def test_allocate_says_now_or_never(cache, worker, ns):
    with worker.begin(ns, []) as sequence, worker.begin(ns, []) as other:
        with pytest.raises(kvtrie.NeverError):
            sequence.allocate(65 * 16)
        sequence.allocate(50 * 16)
        with pytest.raises(kvtrie.NotNowError, match="kvtrie_allocate"):
            other.allocate(50 * 16)
        start = time.monotonic()
        with pytest.raises(kvtrie.TimedOutError):
            other.allocate(50 * 16, wait_ms=20)
        assert time.monotonic() - start >= 0.02
        with pytest.raises(kvtrie.NotNowError):
            other.allocate(50 * 16, wait_ms=20000, flags=kvtrie.Flags.NO_WAIT)


def test_copies_follow_the_layout(worker, ns):
    shape = (2, 2, 40, 2, 4)  # layers, K and V, tokens, heads, half floats: 2 * 2 * 16 * 2 * 8 bytes are a page
    engine = numpy.random.default_rng(1).standard_normal(shape).astype(numpy.float16)
    with worker.begin(ns, support.unique_tokens(40)) as sequence:
        sequence.allocate(40)
        sequence.copy_in(0, 40, engine, layout=kvtrie.Layout.of(engine))
        page = worker.page_array(sequence.pages()[1], dtype=numpy.float16, shape=(2, 2, 16, 2, 4))
        assert numpy.array_equal(page, engine[:, :, 16:32])
        del page
        # another order in memory, with gaps and backwards
        target = numpy.zeros((40, 2, 2, 3, 4), dtype=numpy.float16).transpose(2, 3, 0, 1, 4)[:, :2, ::-1]
        sequence.copy_out(0, 40, target, layout=kvtrie.Layout.of(target))
        assert numpy.array_equal(target, engine)
        part = numpy.zeros((2, 2, 5, 2, 4), dtype=numpy.float16)
        sequence.copy_out(14, 5, part, layout=kvtrie.Layout.of(part))
        assert numpy.array_equal(part, engine[:, :, 14:19])
        pages = bytearray(2 * 1024)
        sequence.copy_out(0, 32, pages)
        sequence.copy_in(0, 32, bytes(pages), plane=1)
        assert bytes(worker.page(sequence.pages()[0], 1)) == bytes(pages[:1024])
        with pytest.raises(ValueError, match="smaller"):
            sequence.copy_out(0, 32, bytearray(2047))
        with pytest.raises(ValueError, match="smaller"):
            sequence.copy_out(0, 6, part, layout=kvtrie.Layout.of(part))
        with pytest.raises(ValueError, match="smaller"):
            sequence.copy_out(0, 6, part[:, :, ::-1], layout=kvtrie.Layout.of(part[:, :, ::-1]))
        with pytest.raises(BufferError):
            sequence.copy_out(0, 32, bytes(2048))
        with pytest.raises(ValueError):
            kvtrie.Layout.of(part[..., ::2])
        sequence.publish(40)
        with pytest.raises(kvtrie.InvalidError):
            sequence.copy_in(0, 32, pages)


def test_probes_and_hashes(cache, worker, ns):
    tokens = support.unique_tokens(100)
    publish(worker, ns, tokens[:64])
    hashes = worker.hash_tokens(ns, tokens)
    assert len(hashes) == 6 and hashes.typecode == "Q"
    for same in (hashes, list(hashes), numpy.array(hashes)):
        assert worker.probe_hashes(ns, same) == kvtrie.ProbeResult(64, 4, 0)
    assert worker.probe(ns, tokens) == kvtrie.ProbeResult(64, 4, 0)
    with pytest.raises(TypeError):
        worker.probe_hashes(ns, array("I", [1]))


def test_views_are_read_only_unless_asked_and_keep_the_worker(cache):
    worker = cache.worker()
    ns = worker.open_namespace(support.fields())
    with worker.begin(ns, []) as sequence:
        sequence.allocate(32)
        page = sequence.pages()[1]
        view = worker.page(page)
        with pytest.raises(TypeError):
            view[0] = 1
        with pytest.raises(ValueError):
            worker.page_array(page)[0] = 1
        worker.page(page, writable=True)[1023] = 9
        assert view[1023] == 9 and len(view) == 1024
        plane = numpy.asarray(worker.plane())
        assert plane.shape == (64, 1024) and plane[page, 1023] == 9
        assert plane.ctypes.data == worker.page_address(0)
        assert worker.page_address(page, 1) - worker.page_address(0, 1) == page * 1024
        for wrong in ((64, 0), (0, 2)):
            with pytest.raises(kvtrie.InvalidError):
                worker.page(*wrong)
    with pytest.raises(BufferError):
        worker.detach()
    assert not worker.closed and view[1023] == 9
    del view
    with pytest.raises(BufferError):
        worker.detach()
    del plane
    worker.detach()
    assert worker.closed
    for call in (worker.detach, worker.counters, lambda: worker.page(0), lambda: worker.begin(ns, [])):
        with pytest.raises(kvtrie.StaleError):
            call()
    assert sequence.closed


def test_what_was_released_is_stale(worker, ns):
    sequence = worker.begin(ns, [1, 2])
    sequence.release()
    assert sequence.closed and sequence.id == 0
    sequence.close()
    calls = (
        sequence.release,
        sequence.page_count,
        sequence.own_pages,
        sequence.fork,
        lambda: sequence.append([1]),
        lambda: sequence.allocate(1),
        lambda: sequence.publish(1),
        lambda: sequence.wait_pending(0),
    )
    for call in calls:
        with pytest.raises(kvtrie.StaleError):
            call()


def test_what_is_forgotten_ends_with_a_warning(cache):
    worker = cache.worker()
    ns = worker.open_namespace(support.fields())
    sequence = worker.begin(ns, [])
    sequence.allocate(16)
    with pytest.warns(ResourceWarning, match="sequence"):
        del sequence
        gc.collect()
    assert worker.counters()["pages_given_back"] == 1
    with pytest.warns(ResourceWarning, match="worker"):
        del worker
        gc.collect()


def test_flushed_namespace(worker, ns):
    tokens = support.unique_tokens(40)
    publish(worker, ns, tokens)
    with worker.begin(ns, tokens) as sequence:
        sequence.allocate(48)
        worker.flush(ns)
        with pytest.raises(kvtrie.FlushedError):
            sequence.publish(48)
    assert worker.probe(ns, tokens).cached_tokens == 0


def test_evict_counts(worker, ns):
    publish(worker, ns, support.unique_tokens(64))
    assert worker.evict(ns, 1) == 1
    assert worker.evict(ns) == 3
    assert worker.evict() == 0


def test_forked_child_is_stale_and_harmless(worker, ns):
    sequence = worker.begin(ns, [])
    sequence.allocate(16)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sequence.page_count()
        except kvtrie.StaleError:
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sequence.page_count() == 1
    sequence.release()


def test_failures_of_attach_say_what_to_do(cache, tmp_path):
    with pytest.raises(kvtrie.NoCoordinatorError, match="kvtried"):
        kvtrie.Worker("nobody", directory=str(tmp_path), library=support.library)
    with pytest.raises(kvtrie.InvalidError):
        cache.worker(role=9)
    with pytest.raises(OverflowError):
        cache.worker(timeout_ms=-1)
    with pytest.raises(OSError, match="LD_LIBRARY_PATH"):
        kvtrie.Library(str(tmp_path / "none.so"))
    with pytest.raises(kvtrie.InvalidError):
        with cache.worker() as worker:
            worker.open_namespace({"Model": "x"})


def test_numbers_are_not_cut(worker, ns):
    with worker.begin(ns, []) as sequence:
        for call in (
            lambda: sequence.allocate(-1),
            lambda: sequence.allocate(16, wait_ms=2**32),
            lambda: sequence.publish(2**64),
            lambda: sequence.pages(-1),
            lambda: sequence.pages(0, -1),
            lambda: sequence.give_back(2**32, 1),
            lambda: sequence.copy_out(-1, 1, bytearray(1)),
            lambda: worker.page(-1),
            lambda: worker.begin(ns, [], priority=256),
        ):
            with pytest.raises(OverflowError):
                call()


def test_ranks_and_a_queued_device():
    with support.Cache("--planes", "2", "--device", "queued") as cache, cache.worker() as scheduler:
        ns = scheduler.open_namespace(support.fields())
        with cache.worker(role=kvtrie.Role.PLANE_WRITER, plane_mask=2, scheduler=scheduler.id()) as rank:
            rank_id = rank.id()
            with scheduler.begin(ns, support.unique_tokens(16)) as sequence:
                sequence.allocate(16)
                (page,) = sequence.pages()
                rank.queue_copy(page, 1, 24, b"kv of the rank")
                with pytest.raises(kvtrie.InvalidError):
                    rank.queue_copy(page, 0, 0, b"not its plane")
                rank.wait_copies(10000)
                assert bytes(scheduler.page(page, 1)[24:38]) == b"kv of the rank"
                sequence.publish(16)
            assert not scheduler.writer_over(rank_id)
        assert support.eventually(lambda: scheduler.writer_over(rank_id))
        with pytest.raises(kvtrie.InvalidError):
            scheduler.plane_descriptor(0)
        with pytest.raises(kvtrie.InvalidError):
            scheduler.drive_clock(5)


def test_a_driven_clock():
    with support.Cache("--clock", "driven") as cache, cache.worker() as worker:
        assert worker.geometry.tick_ns == 10**6
        worker.drive_clock(120)


def test_library_answers():
    assert support.library.api_version() >= 2
    assert support.library.code_name(kvtrie.NotNowError.code) == "not_now"
    with pytest.raises(kvtrie.StaleError):
        support.library.check(support.library.calls.kvtrie_release(kvtrie._abi.kvtrie_sequence(1)))
    assert "kvtrie_release" in support.library.last_error()
