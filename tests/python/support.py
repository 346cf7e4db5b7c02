# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""What the tests of the Python package share: the built tree, a kvtried of their own, processes of their own.

KVTRIE_SOURCE_DIR and KVTRIE_BUILD_DIR come from CTest.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional

SOURCE_DIR = os.environ["KVTRIE_SOURCE_DIR"]
BUILD_DIR = os.environ["KVTRIE_BUILD_DIR"]
LIBRARY = os.path.join(BUILD_DIR, "lib", "libkvtrie_worker.so")
PACKAGE_DIR = os.path.join(SOURCE_DIR, "worker_plugin", "python")
sys.path.insert(0, PACKAGE_DIR)

import kvtrie  # noqa: E402

library = kvtrie.Library(LIBRARY)
_numbers = itertools.count()


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What condition() answers once it is true, or after so long."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer or time.monotonic() > end:
            return answer
        time.sleep(0.002)


class Cache:
    """A kvtried of its own, by fork and exec; ends, and its memory with it, at the end of the with."""

    def __init__(self, *settings: str, pages: int = 64, page_bytes: int = 1024, tokens_per_page: int = 16) -> None:
        self.name = f"python-{os.getpid()}-{next(_numbers)}"
        self.directory = tempfile.mkdtemp(prefix="kvtrie-python-")
        self.log_path = os.path.join(self.directory, "log")
        command = [os.path.join(BUILD_DIR, "bin", "kvtried"), "--cache", self.name, "--dir", self.directory]
        command += ["--pages", str(pages), "--page-bytes", str(page_bytes), "--tokens-per-page", str(tokens_per_page)]
        with open(self.log_path, "w") as log:
            self.daemon = subprocess.Popen(
                command + ["--metrics", "off", *settings], stdout=subprocess.PIPE, stderr=log, text=True
            )
        ready = self.daemon.stdout.readline()
        self.daemon.stdout.close()
        if not ready.startswith("event=ready"):
            with open(self.log_path) as log_file:
                raise RuntimeError(f"kvtried: {ready} {log_file.read()}")

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()
        for path in glob.glob(f"/dev/shm/kvtrie.{self.name}.*"):
            os.unlink(path)
        shutil.rmtree(self.directory)

    def stop(self) -> None:
        if self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait()

    def worker(self, **options: Any) -> kvtrie.Worker:
        return kvtrie.Worker(self.name, directory=self.directory, library=library, **options)

    def kvtrie(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """The kvtrie program on this cache."""
        command = [os.path.join(BUILD_DIR, "bin", "kvtrie"), *words, "--cache", self.name, "--dir", self.directory]
        return subprocess.run(command, capture_output=True, text=True)

    def page_states(self) -> Dict[str, int]:
        """How many pages are in which state, as `kvtrie status` counts them."""
        states: Dict[str, int] = json.loads(self.kvtrie("status", "--json").stdout)["pages"]
        return states

    def verify(self) -> None:
        """`kvtrie verify` finds nothing."""
        done = self.kvtrie("verify")
        assert done.returncode == 0, done.stdout + done.stderr


class Child:
    """A Python process of its own that runs code with the package: asked and answering by lines."""

    def __init__(self, cache: Cache, code: str) -> None:
        start = (
            f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
            "import support\n"
            "import kvtrie\n"
            f"worker = kvtrie.Worker({cache.name!r}, directory={cache.directory!r}, library=support.library)\n"
            "def say(*what): print(*what, flush=True)\n"
            "def wait(): return sys.stdin.readline().strip()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", start + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def answer(self) -> str:
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def fields(**more: str) -> Dict[str, str]:
    """Of a namespace that no other test has."""
    return {"model": f"test-{next(_numbers)}", **more}


def unique_tokens(count: int, seed: Optional[int] = None) -> List[int]:
    first = (next(_numbers) if seed is None else seed) * 100003
    return [(first + i) % 2**32 for i in range(count)]
