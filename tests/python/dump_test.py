# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""Dumps and `kvtrie page --stats`, compared with what numpy says of the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Dict

import numpy
import pytest
import support

DTYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "raw": "|u1"}


def numbers(array: "numpy.ndarray[Any, Any]", dtype: str) -> "numpy.ndarray[Any, Any]":
    """As 64-bit numbers."""
    if dtype == "bf16":
        return (array.astype("u4") << 16).view("f4").astype("f8")
    return array.astype("f8")


def check_statistics(said: Dict[str, Any], array: "numpy.ndarray[Any, Any]", dtype: str) -> None:
    values = numbers(array.reshape(-1), dtype)
    finite = values[numpy.isfinite(values)]
    assert said["items"] == values.size
    assert said["nan"] == numpy.isnan(values).sum() and said["inf"] == numpy.isinf(values).sum()
    if finite.size == 0:
        assert said["min"] is said["max"] is said["mean"] is said["standard_deviation"] is None
        assert said["histogram"] == [0] * 16
        return
    assert said["min"] == finite.min() and said["max"] == finite.max()
    scale = max(abs(finite).max(), 1e-30)
    assert abs(said["mean"] - finite.mean()) <= 1e-12 * scale
    assert abs(said["standard_deviation"] - finite.std()) <= 1e-12 * scale
    assert said["histogram"] == numpy.histogram(finite, bins=16, range=(finite.min(), finite.max()))[0].tolist()


def samples(dtype: str) -> bytes:
    """4 pages of 4 KiB: ordinary numbers, all bit patterns, all alike, nothing finite."""
    kind = numpy.dtype(DTYPES[dtype])
    count = 4096 // kind.itemsize
    random = numpy.random.default_rng(17)
    if dtype == "raw":
        ordinary = random.integers(0, 256, count, dtype=numpy.uint8)
        same, infinite = numpy.full(count, 7, "u1"), numpy.zeros(count, "u1")
    elif dtype == "bf16":
        ordinary = (random.standard_normal(count).astype("f4").view("u4") >> 16).astype("<u2")
        same, infinite = numpy.full(count, 0x3F80, "<u2"), numpy.full(count, 0xFF80, "<u2")
    else:
        ordinary = (random.standard_normal(count) * 3 - 1).astype(kind)
        same, infinite = numpy.full(count, -2.5, kind), numpy.array([numpy.nan, -numpy.inf] * (count // 2), kind)
    any_bits = random.integers(0, 256, 4096, dtype=numpy.uint8).tobytes()
    return ordinary.tobytes() + any_bits + same.tobytes() + infinite.tobytes()


def write_dump(*arguments: object) -> str:
    program = os.path.join(support.BUILD_DIR, "tests", "bin", "write_dump")
    done = subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def diff_dumps(a: str, b: str) -> "subprocess.CompletedProcess[str]":
    program = os.path.join(support.BUILD_DIR, "bin", "kvtrie")
    return subprocess.run([program, "diff-dumps", a, b], capture_output=True, text=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_reads_what_was_dumped(tmp_path, dtype):
    data = samples(dtype)
    (tmp_path / "bytes").write_bytes(data)
    dump = write_dump(f"{tmp_path}/dumps,raw,tag=7", "before", tmp_path / "bytes", 4096, dtype)
    assert os.path.basename(dump).endswith("-000000-before")
    with open(os.path.join(dump, "info.json")) as file:
        info = json.load(file)
    assert info["requests"][0]["tokens"] == list(range(100, 167)) and info["requests"][0]["request_tag"] == 7
    assert info["requests"][0]["page_table"] == [90, 89, 88, 87, None]
    assert info["batch"] == [{"request": 0, "kind": "prefill", "first_token": 16, "token_count": 51}]
    assert [page["page"] for page in info["pages"]] == [90, 89, 88, 87]
    for position, page in enumerate(info["pages"]):
        (part,) = page["parts"]
        array = numpy.load(os.path.join(dump, part["file"]), allow_pickle=False)
        assert array.dtype == DTYPES[dtype] and list(array.shape) == part["shape"]
        assert array.tobytes() == data[position * 4096 : (position + 1) * 4096]
        check_statistics(part["statistics"], array, dtype)
    assert sorted(os.listdir(dump)) == sorted(["info.json"] + [page["parts"][0]["file"] for page in info["pages"]])


def test_shapes_come_from_the_namespace(tmp_path):
    (tmp_path / "bytes").write_bytes(samples("f16"))
    fields = "engine=mine\nkv=f16 f16\nkv_shape=2x16x4x16\n"
    dump = write_dump(f"{tmp_path}/dumps,raw", "after", tmp_path / "bytes", 4096, "-", fields)
    for position in range(4):
        array = numpy.load(os.path.join(dump, f"request0-position{position:05}-plane0-page.npy"))
        assert array.shape == (2, 16, 4, 16) and array.dtype == numpy.float16


def test_without_raw_there_is_info_alone_and_others_are_not_dumped(tmp_path):
    (tmp_path / "bytes").write_bytes(samples("f32"))
    dump = write_dump(f"{tmp_path}/dumps", "before", tmp_path / "bytes", 4096, "f32")
    assert os.listdir(dump) == ["info.json"]
    assert write_dump(f"{tmp_path}/dumps,tag=8", "before", tmp_path / "bytes", 4096, "f32") == "not wanted"
    assert write_dump(f"{tmp_path}/dumps,max=0", "before", tmp_path / "bytes", 4096, "f32") == "not wanted"


def test_diff_dumps_finds_the_item_that_numpy_finds(tmp_path):
    data = samples("f32")
    changed = numpy.frombuffer(data, "<f4").copy()
    changed[1024 * 2 + 777] = 5.25
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "other").write_bytes(changed.tobytes())
    one = write_dump(f"{tmp_path}/1,raw", "before", tmp_path / "one", 4096, "f32")
    again = write_dump(f"{tmp_path}/2,raw", "before", tmp_path / "one", 4096, "f32")
    other = write_dump(f"{tmp_path}/3,raw", "before", tmp_path / "other", 4096, "f32")
    assert diff_dumps(one, again).returncode == 0
    done = diff_dumps(one, other)
    assert done.returncode == 1
    assert "request 0 position 2 plane 0 (page 88 and page 88): part page [777]: -2.5 and 5.25" in done.stdout
    assert "1 of 4 pages" in done.stdout


@pytest.mark.parametrize("dtype", DTYPES)
def test_page_stats_of_a_live_pool_are_those_of_numpy(dtype):
    data = samples(dtype)
    kv = {"raw": "q8_0 q8_0"}.get(dtype, f"{dtype} {dtype} unified")
    with support.Cache("--planes", "2", page_bytes=4096) as cache, cache.worker() as worker:
        ns = worker.open_namespace(support.fields(kv=kv, kv_shape="64x16" if dtype == "f32" else "3x3"))
        with worker.begin(ns, list(range(64))) as sequence:
            sequence.allocate(64)
            pages = sequence.pages()
            for position, page in enumerate(pages):
                content = data[position * 4096 : (position + 1) * 4096]
                worker.page(page, 0, writable=True)[:] = content
                worker.page(page, 1, writable=True)[:] = content[::-1]
            sequence.publish(64)
            for position, page in enumerate(pages):
                said = json.loads(cache.kvtrie("page", str(page), "--stats", "--json").stdout)["statistics"]
                assert not said["changed_while_read"] and [plane["plane"] for plane in said["planes"]] == [0, 1]
                for plane in said["planes"]:
                    (part,) = plane["parts"]
                    array = worker.page_array(page, plane["plane"], dtype=DTYPES[dtype])
                    assert part["dtype"] == dtype and part["bytes"] == 4096
                    assert part["shape"] == ([64, 16] if dtype == "f32" else [array.size])
                    check_statistics(part["statistics"], array, dtype)
                    del array
            shown = cache.kvtrie("page", str(pages[0]), "--stats").stdout
            assert "min to max" in shown and f" {dtype} " in shown
            forced = json.loads(cache.kvtrie("page", str(pages[0]), "--stats", "--dtype", "f32", "--json").stdout)
            assert forced["statistics"]["planes"][0]["parts"][0]["dtype"] == "f32"
            plain = json.loads(cache.kvtrie("page", str(pages[0]), "--json").stdout)
            assert plain["statistics"] is None
            assert cache.kvtrie("page", str(pages[0]), "--dtype", "f32").returncode == 2


def test_page_stats_of_a_dead_cache_and_of_a_pool_that_is_gone():
    with support.Cache(page_bytes=4096) as cache:
        with cache.worker() as worker, worker.begin(worker.open_namespace(support.fields(kv="f32")), [1]) as sequence:
            sequence.allocate(16)
            worker.page_array(sequence.pages()[0], dtype="<f4", writable=True)[:] = 1.5
            page = str(sequence.pages()[0])
        cache.stop()
        said = json.loads(cache.kvtrie("page", page, "--stats", "--dtype", "f32", "--json").stdout)["statistics"]
        assert said["planes"][0]["parts"][0]["statistics"]["mean"] == 1.5  # left over: nobody was given the page
        for name in os.listdir("/dev/shm"):
            if name.startswith(f"kvtrie.{cache.name}.") and "pool" in name:
                os.truncate(f"/dev/shm/{name}", 4096)
        done = cache.kvtrie("page", page, "--stats")
        assert done.returncode == 4 and "pool" in done.stderr
