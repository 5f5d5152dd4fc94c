"""Where there is no network but this machine's own, nothing waits for one: no name is looked up, and all answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.soak.app import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="networks of a process's own are Linux's")
ALONE = (
    "unshare", "--user", "--map-root-user", "--net", "sh", "-c",
    'ip link set lo up && for name; do case $name in *[!0-9a-f.:]*) break;; esac; '
    'ip addr add "$name" dev lo 2>/dev/null; shift; done; exec "$@"', "sh",
)  # fmt: skip
"""Runs a command without a network; addresses before it are given to this machine."""
LISTENING = """
import json, socket, subprocess, sys, threading
asked, names = [], json.loads(sys.argv[1])
def listen(address):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            asked.append(server.recv(512).hex())
for address in names:
    threading.Thread(target=listen, args=(address,), daemon=True).start()
done = subprocess.run(sys.argv[2:], capture_output=True, text=True, timeout=120)
print(json.dumps({"asked": asked, "status": done.returncode, "said": done.stdout + done.stderr}))
"""
"""Plays the name servers of this machine, which never answer, while a command runs; prints what both said."""
IMPATIENT = {"RES_OPTIONS": "timeout:1 attempts:1"}
"""A look-up that nobody answers is given up after a second, where resolv.conf(5) says ten by default."""
RUN = """
import contextlib, pathlib, sys, httpx
from tests.soak.app import running
with running() as app:
    body = {"messages": [{"role": "user", "content": "hello"}], "modalities": ["text"]}
    print(httpx.get(app.url).status_code, httpx.post(app.url + "v1/chat/completions", json=body, timeout=30).text)
"""


def alone(*command: str) -> dict[str, Any]:
    servers = re.findall(r"^nameserver\s+([0-9a-fA-F.:]+)$", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    inside = [*ALONE, *servers, sys.executable, "-c", LISTENING, json.dumps(servers), *command]
    done = subprocess.run(
        inside, env=os.environ | IMPATIENT, capture_output=True, text=True, cwd=ROOT, timeout=150, check=False
    )
    if done.returncode and not done.stdout:
        pytest.skip(f"this user may not have a network of its own: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_name_that_is_looked_up_would_be_noticed() -> None:
    found = alone(sys.executable, "-c", "import socket; socket.getaddrinfo('example.org', 80)")
    assert found["asked"]
    assert found["status"] == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["-m", "omni_app", "doctor"], "microphone: works on this machine"),
        (["-m", "omni_app", "serve", "/no/such/model", "--only-plan"], "/no/such/model is not a folder"),
        (["-c", RUN], '200 {"id": "chatcmpl-'),
    ],
)
def test_without_a_network_nothing_looks_for_one(command: list[str], says: str) -> None:
    found = alone(sys.executable, *command)
    assert says in found["said"]
    assert found["asked"] == []
