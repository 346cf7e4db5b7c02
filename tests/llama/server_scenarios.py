# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""llama-server processes, unmodified, that share prefixes: what server_test runs. Each scenario is asked of a server
without the library first, one request at a time, and then of servers with it, several requests at a time; the texts
must be the same, and tokens that llama_decode did not see and pages that were imported are counted.
    server_scenarios.py --server PROGRAM --libraries FOLDER --bin FOLDER --preload LIBRARY --model FILE --cache NAME
                        --work FOLDER [--only SCENARIO]
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

FAILURES = ("import_failures", "layout_failures", "export_failures", "other_failures")
TIME_OUT = 120


class Failed(Exception):
    pass


def words(name, count):
    """The same tokens for the same name."""
    state, out = name * 7919 + 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(300 + (state >> 8) % 30000)
    return out


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIME_OUT)
        self.sock.connect(self.path)


class Server:
    running = []

    def __init__(self, options, name, flags, variables=None):
        """`variables`: of the preload library; None: without it."""
        self.name, self.socket = name, str(options.work / f"{name}.sock")
        pathlib.Path(self.socket).unlink(missing_ok=True)
        self.log, self.report_file = options.work / f"{name}.log", options.work / f"{name}.json"
        more = {} if variables is None else {
            "KVTRIE_CACHE": options.cache, "KVTRIE_DIR": str(options.work), "KVTRIE_LLAMA_HASHES": "",
            "KVTRIE_LLAMA_REPORT": str(self.report_file), "LD_PRELOAD": str(options.preload), **variables}
        command = [options.server, "-m", options.model, "--host", self.socket, "-t", "1", "-fa", "off", "--no-webui",
                   "-lv", "5", *flags]
        with open(self.log, "w") as log:  # it looks for back ends where it is
            self.process = subprocess.Popen([str(word) for word in command], cwd=options.libraries, stdout=log,
                                            stderr=log, env={**os.environ, **more})
        self.running.append(self)

    def ready(self):
        end = time.monotonic() + TIME_OUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.request("GET", "/health")[0] == 200:
                    return self
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise Failed(f"{self.name} is not ready: {self.log.read_text()[-3000:]}")

    def request(self, method, path, body=None):
        connection = Connection(self.socket)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ask(self, tokens, count=8):
        """Tokens and what llama-server says of how long it took."""
        status, answer = self.request("POST", "/completion", {
            "prompt": tokens, "n_predict": count, "temperature": 0, "top_k": 1, "ignore_eos": True,
            "return_tokens": True})
        if status != 200:
            raise Failed(f"{self.name}: /completion: {status}: {answer}")
        return answer["tokens"], answer["timings"]["prompt_ms"] + answer["timings"]["predicted_per_token_ms"]

    def said(self, text):
        return self.log.read_text(errors="replace").count(text)

    def end(self, how=signal.SIGTERM):
        self.running.remove(self)
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended by itself, {self.process.returncode}: {self.log.read_text()[-3000:]}")
        self.process.send_signal(how)
        if self.process.wait(TIME_OUT) not in (0, -how):
            raise Failed(f"{self.name}: {self.process.returncode} at its end: {self.log.read_text()[-3000:]}")
        return self

    def context(self):
        """Of the context that computes: others measure memory, or foresee tokens."""
        contexts = json.loads(self.report_file.read_text())["contexts"]
        return max(contexts, key=lambda c: (c["sharing"], c["tokens_given"]))


class Scenarios:
    def __init__(self, options):
        self.options, self.bad = options, []

    def check(self, what, holds, more=""):
        if not holds:
            print(f"FAILED: {what} {more}")
            self.bad.append(what)

    def server(self, name, flags, tenant=None, **variables):
        # A tenant has a namespace of its own.
        return Server(self.options, name, flags, None if tenant is None else {"KVTRIE_TENANT": tenant, **variables})

    def counter(self, name):
        out = subprocess.run([self.options.bin / "kvtrie", "status", "--json", "--cache", self.options.cache, "--dir",
                              self.options.work], capture_output=True, text=True, check=True).stdout
        return json.loads(out)["counters"][name]

    def report(self, server):
        c = server.context()
        self.check(f"{server.name}: shares", c["sharing"], c)
        self.check(f"{server.name}: no failures", all(c.get(f) == 0 for f in FAILURES), c)
        print(f"  {server.name}: tokens given {c['tokens_given']}, seen by llama_decode {c['tokens_seen']}; pages "
              f"imported {c.get('pages_imported')}, published {c.get('pages_published')}; states known again "
              f"{c['states_restored']}")
        return c

    def one_after_the_other(self):
        print("a server, and another one that has never seen the prompts")
        prompts = [words(1, 900) + words(2, 20), words(1, 900) + words(3, 20), words(4, 300)]
        answers = {}
        for name, tenant in (("alone", None), ("first", "a"), ("second", "a")):
            server = self.server(name, ["-c", "4096", "-np", "1"], tenant).ready()
            answers[name] = [server.ask(prompt) for prompt in prompts]
            server.end()
            print(f"  {name}: time to first token, ms: " + ", ".join(f"{ms:.1f}" for _, ms in answers[name]))
            self.check(f"{name}: the same texts", [t for t, _ in answers[name]] == [t for t, _ in answers["alone"]])
            if tenant is not None:
                c = self.report(server)
        self.check("pages imported", c["pages_imported"] > 70, c)
        self.check("most tokens not seen by llama_decode", c["tokens_seen"] * 4 < c["tokens_given"], c)

    def conversations(self):
        print("two servers at once, 4 slots each: 6 conversations, whose turns go to one and the other")
        flags, system, turns = ["-c", "8192"], words(10, 600), 4

        def talk(ask_all):
            chats = [system + words(20 + i, 40) for i in range(6)]
            texts = []
            for turn in range(turns):
                told = ask_all(turn, chats)
                texts.append(told)
                chats = [chat + text + words(100 + 10 * turn + i, 30)
                         for i, (chat, text) in enumerate(zip(chats, told))]
            return texts

        alone = self.server("alone", flags).ready()
        expected = talk(lambda _, chats: [alone.ask(chat)[0] for chat in chats])
        alone.end()
        servers = [self.server(name, flags, "b") for name in ("left", "right")]
        for server in servers:
            server.ready()
        with concurrent.futures.ThreadPoolExecutor(6) as at_once:
            got = talk(lambda turn, chats: list(at_once.map(
                lambda i: servers[(i + turn // 2) % 2].ask(chats[i])[0], range(len(chats)))))
        self.check("the same texts", got == expected)
        reports = [self.report(server.end()) for server in servers]
        for server, c in zip(servers, reports):
            self.check(f"{server.name}: pages imported", c["pages_imported"] > 60, c)
            self.check(f"{server.name}: tokens not seen by llama_decode",
                       c["tokens_given"] - c["tokens_seen"] == c["tokens_imported"] > 900, c)
        self.check("states came back from the server's prompt cache", sum(c["states_restored"] for c in reports) > 0)
        # Each page of the system prompt and of each conversation is published once, generated tokens included.
        last = len(system) + 40 + (turns - 1) * (8 + 30) + 8 - 1  # the KV of the last token is never computed
        pages = len(system) // 16 + 6 * (last // 16 - len(system) // 16)
        published = sum(c["pages_published"] for c in reports)
        self.check("nearly every page published, once", pages * 0.9 <= published <= pages, f"{published} of {pages}")

    def context_shift(self):
        print("a slot that is full: context shift")
        flags, prompt = ["-c", "512", "-np", "1", "--context-shift"], words(40, 300)
        texts = {}
        for name, tenant in (("alone", None), ("first", "c"), ("second", "c")):
            server = self.server(name, flags, tenant).ready()
            # The third goes on where its slot was shifted, the fourth begins again behind the same prompt.
            first = server.ask(prompt, 400)[0]
            texts[name] = [first, server.ask(prompt + words(41, 40))[0], server.ask((prompt + first)[-250:])[0],
                           server.ask(prompt + words(42, 60))[0]]
            shifts = server.said("slot context shift")
            server.end()
            self.check(f"{name}: was shifted", shifts > 0)
            self.check(f"{name}: the same texts", texts[name] == texts["alone"])
            if tenant is not None:
                c = self.report(server)
        self.check("pages imported", c["pages_imported"] >= 300 // 16, c)
        self.check("diverged", c["diverged"] > 0, c)

    def other_flags(self):
        print("other ways to run it")
        system = words(70, 400)
        # The third is the second one without its beginning, the fourth repeats itself.
        prompts = [system + words(71, 100), system + words(72, 40), (system + words(72, 40))[64:],
                   system + 12 * words(73, 8)]
        ways = {"flash": ["-fa", "on"], "reuse": ["--cache-reuse", "32", "-np", "1"],
                "small": ["-b", "128", "-ub", "64"],
                "draft": ["-md", self.options.model, "--spec-type", "draft-simple"], "sampled": ["--backend-sampling"]}
        for way, more in ways.items():
            flags, texts = ["-c", "4096", *more], {}
            for name, tenant in (("alone", None), ("first", f"f-{way}"), ("second", f"f-{way}")):
                server = self.server(f"{way}_{name}", flags, tenant).ready()
                texts[name] = [server.ask(prompt, 24)[0] for prompt in prompts]
                server.end()
                self.check(f"{way}_{name}: the same texts", texts[name] == texts["alone"])
                if tenant is not None and way != "sampled":
                    c = self.report(server)
            if way == "sampled":
                self.check("a sampler in the back end is said", server.said("samples in the back end") == 1)
            elif way == "reuse":
                self.check("moved what its slot had", server.said("reusing chunk") > 0 and c["diverged"] > 0, c)
            elif way == "draft":
                self.check("looked ahead", server.said("draft acceptance") > 0)
            if way != "sampled":
                self.check(f"{way}: pages imported", c["pages_imported"] >= 400 // 16, c)

    def own_caches(self):
        print("slots with KV caches of their own (-np 2): passed through, or made one")
        flags, prompts = ["-c", "4096", "-np", "2"], [words(50, 400) + words(51 + i, 30) for i in range(2)]
        alone = self.server("alone", flags).ready()
        expected = [alone.ask(prompt)[0] for prompt in prompts]
        alone.end()
        unify = {"KVTRIE_LLAMA_UNIFY": "1"}
        for name, variables in (("separate", {}), ("unified", unify), ("unified_too", unify)):
            server = self.server(name, flags, "d", **variables).ready()
            self.check(f"{name}: the same texts", [server.ask(prompt)[0] for prompt in prompts] == expected)
            server.end()
            if variables:
                c = self.report(server)
            else:
                self.check("says so once", server.said("kv_unified is off") == 1)
                self.check("passes through", server.context()["sharing"] is False)
        self.check("pages imported", c["pages_imported"] >= 400 // 16, c)

    def killed(self):
        print("one server is killed while it computes a prompt, and another one has the same")
        flags, prompt = ["-c", "8192"], words(60, 6000)
        alone = self.server("alone", flags).ready()
        expected, ms = alone.ask(prompt)
        alone.end()
        before = self.counter("pages_published")
        owner, other = (self.server(name, flags, "e").ready() for name in ("killed", "survivor"))
        with concurrent.futures.ThreadPoolExecutor(2) as at_once:
            lost = at_once.submit(owner.ask, prompt)
            end = time.monotonic() + TIME_OUT
            while self.counter("pages_published") == before and time.monotonic() < end:
                pass
            waits = self.counter("pending_waits")
            answer = at_once.submit(other.ask, prompt)
            while self.counter("pending_waits") == waits and time.monotonic() < end:
                pass
            published = self.counter("pages_published") - before
            owner.end(signal.SIGKILL)
            start = time.monotonic()
            text, _ = answer.result(TIME_OUT)
            took = (time.monotonic() - start) * 1e3
            self.check("the killed one answered nothing", lost.exception(TIME_OUT) is not None)
        self.check("the same text", text == expected)
        c = self.report(other.end())
        print(f"  killed with {published * 16} of {len(prompt)} tokens published; answered {took:.0f} ms after that "
              f"(alone {ms:.0f} ms)")
        self.check("it was killed while it computed", 0 < published < len(prompt) // 16, published)
        self.check("waited", c["waits"] > 0, c)
        self.check("took what the other one had computed", c["pages_imported"] >= published, c)
        self.check("and computed the rest alone", c["tokens_seen"] <= len(prompt) - published * 16 + 64, c)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("server", "libraries", "bin", "preload", "model", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--only", action="append", help="a scenario")
    options = parser.parse_args()
    scenarios = Scenarios(options)
    names = options.only or ["one_after_the_other", "conversations", "context_shift", "other_flags", "own_caches",
                             "killed"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name in names:
            getattr(scenarios, name)()
    except (Failed, OSError, KeyError, ValueError, http.client.HTTPException) as error:
        print(f"FAILED: {type(error).__name__}: {error}")
        return 1
    finally:
        for server in Server.running:
            server.process.kill()
            server.process.wait()
    return 1 if scenarios.bad else 0


if __name__ == "__main__":
    sys.exit(main())
