# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""tools/measure-engines and tools/llama/demo that are stopped by a signal, to them alone or to all of their group,
leave no memory and no process behind.
    stopped_test.py SOURCE_DIR BUILD_DIR LLAMA_DIR
"""
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

source, build, llama = (pathlib.Path(word) for word in sys.argv[1:])
SHM = pathlib.Path("/dev/shm")


def eventually(what, holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def daemons(cache):
    found = []
    for path in pathlib.Path("/proc").iterdir():
        try:
            if path.name.isdigit() and cache.encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(path.name)
        except OSError:
            pass
    return found


def stopped(name, command, how, group, more_s, work):
    program = subprocess.Popen([str(word) for word in command], start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(work)})
    assert program.pid > 0
    cache = f"{name}-{program.pid}"
    try:
        eventually(f"{cache} begins", lambda: list(SHM.glob(f"kvtrie.{cache}.*")) or program.poll() is not None)
        time.sleep(more_s)  # not always at the same place
        assert program.poll() is None, f"{name} ended before it was stopped"
        for _ in range(2):
            (os.killpg if group else os.kill)(program.pid, how)
        program.wait(60)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    what = f"{name}, {how.name}, {'its group' if group else 'alone'}"
    assert not list(SHM.glob(f"kvtrie.{cache}.*")), (what, list(SHM.glob(f"kvtrie.{cache}.*")))
    assert not daemons(cache), (what, daemons(cache))
    assert not list(work.iterdir()), (what, list(work.iterdir()))
    # A hangup is a termination to the shell scripts.
    assert program.returncode in (128 + how, 128 + signal.SIGTERM), (what, program.returncode)


with tempfile.TemporaryDirectory() as folder:
    here = pathlib.Path(folder)
    measure = [sys.executable, source / "tools/measure-engines", "--quick", "--build", build, "--llama", llama,
               "--work", here]
    stopped("measure-engines", measure, signal.SIGTERM, True, 0, here)
    stopped("measure-engines", measure, signal.SIGINT, True, 0.5, here)
    stopped("measure-engines", measure, signal.SIGTERM, False, 0.2, here)
    stopped("measure-engines", measure, signal.SIGHUP, False, 0, here)
    demo = [source / "tools/llama/demo", build, "2m"]
    stopped("llama-demo", demo, signal.SIGTERM, True, 0.1, here)
    stopped("llama-demo", demo, signal.SIGINT, True, 0, here)
    stopped("llama-demo", demo, signal.SIGHUP, False, 0, here)
