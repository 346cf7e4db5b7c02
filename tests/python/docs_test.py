# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""The examples of docs/python.md do what they say; the package installs without network, and mypy finds nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
import support


def blocks():
    with open(os.path.join(support.SOURCE_DIR, "docs", "python.md")) as file:
        return re.findall(r"^```python\n(.*?)^```$", file.read(), flags=re.M | re.S)


def test_examples_do_what_they_say(capsys):
    with support.Cache(pages=64) as cache:
        names = {"worker_of_the_test": cache.worker}
        code = "\n".join(blocks())
        assert code.count('kvtrie.Worker("demo")') == 1
        exec(compile(code.replace('kvtrie.Worker("demo")', "worker_of_the_test()"), "docs/python.md", "exec"), names)
        said = capsys.readouterr().out.splitlines()
        # what the comments behind print() say
        assert said[:2] == ["96", "96"] and len(said[2].split(",")) == 6
        assert said[3].startswith("kvtrie_allocate: ") and "more pages than this cache has" in said[3]
        assert said[4:] == ["32 [0, 0, 1]"]
        assert code.count("print(") == 5
        names["worker"].detach()  # no view of a page is left
        cache.verify()


def test_installs_without_network_and_runs_from_there(tmp_path):
    source = tmp_path / "source"  # pip builds in the tree that it is given
    shutil.copytree(support.PACKAGE_DIR, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    command.append("--no-compile")
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "--target", str(tmp_path / "there"), str(source)], check=True, env=environment)
    assert (tmp_path / "there" / "kvtrie" / "py.typed").exists()
    with support.Cache() as cache:
        program = (
            "import sys; sys.modules['numpy'] = None  # it is not needed\n"
            "import kvtrie, kvtrie.shortfin\n"
            f"assert kvtrie.__file__.startswith({str(tmp_path / 'there')!r})\n"
            f"with kvtrie.Worker({cache.name!r}, directory={cache.directory!r}) as worker:\n"
            "    with worker.begin(worker.open_namespace({'model': 'x'}), range(20)) as sequence:\n"
            "        sequence.allocate(20)\n"
            "        print(sequence.publish(20).published_tokens)\n"
        )
        environment["PYTHONPATH"] = str(tmp_path / "there")
        environment["LD_LIBRARY_PATH"] = os.path.join(support.BUILD_DIR, "lib")
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert done.stdout == "16\n"


@pytest.mark.skipif(not shutil.which("mypy"), reason="no mypy (Debian: mypy)")
def test_types_are_sound():
    done = subprocess.run(
        ["mypy", "--strict", "--cache-dir", os.path.join(support.BUILD_DIR, "mypy"), "-p", "kvtrie"],
        cwd=support.PACKAGE_DIR,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
