# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
"""Three requests to a llama-server at a Unix socket, greedily: a long prompt, the same again with another question, and
another prompt. Prints JSON: what was answered, and when.
    server_client.py SOCKET
"""
import http.client
import json
import socket
import sys
import time


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(sys.argv[1])


def ask(method, path, body=None):
    connection = Connection("localhost")
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


end = time.monotonic() + 60
while True:
    try:
        if ask("GET", "/health")[0] == 200:
            break
    except (OSError, http.client.HTTPException):
        pass
    if time.monotonic() > end:
        sys.exit("llama-server is not ready in time")
    time.sleep(0.05)

rules = " ".join(f"rule {i % 97} of {i}" for i in range(90))
answers = []
for prompt in (rules + " What is a page?", rules + " Who owns it?", "Another prompt: " + rules[:400]):
    start = time.monotonic()
    status, answer = ask("POST", "/completion", {"prompt": prompt, "n_predict": 8, "temperature": 0, "top_k": 1})
    if status != 200:
        sys.exit(f"/completion: {status}: {answer}")
    answers.append({"text": answer["content"], "ms": (time.monotonic() - start) * 1e3})
print(json.dumps(answers))
