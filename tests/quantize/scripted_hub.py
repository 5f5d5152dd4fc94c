"""A scripted hub on a loopback port: the routes that huggingface_hub uses to look, fetch and push, and no others.

Routes, headers and answers are those that huggingface_hub's own client asks for and parses (read in 1.33 and 2.4:
hf_api.py, file_download.py, _commit_api.py, lfs.py, utils/_http.py); both clients are driven against it. Uploads are
taken by Git LFS, so clients need HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.running_server import running

OWNER, TOKEN = "user", "hf_users_own"
COMMIT = "a" * 40


@dataclass
class Repo:
    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    commit: str = COMMIT
    """Where main is."""
    earlier: dict[str, Repo] = field(default_factory=dict)
    """As it was at each commit that main has left."""

    def move(self, files: dict[str, bytes]) -> None:
        """Somebody pushes: main is another commit with these files from now on."""
        self.earlier[self.commit] = replace(self)
        self.commit, self.files = hashlib.sha1(self.commit.encode()).hexdigest(), files

    def at(self, revision: str) -> Repo | None:
        return self if revision in ("main", self.commit) else self.earlier.get(revision)


@dataclass
class Hub:
    """What the hub holds, and what was asked of it."""

    address: str
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Git LFS objects by SHA-256."""
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes of bodies served, by file name."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    logins: set[str] = field(default_factory=set)
    """Every token that was sent along; empty for none."""
    full: bool = False
    """Whether the owner's storage has no room left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """No lines on the terminal."""

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._refuse(404, "EntryNotFound")

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self._login != TOKEN:
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            self._modes(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        self._note()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self._answer({})

    def _note(self) -> None:
        self.hub.logins.add(self._login)
        self.hub.asked.append(f"{self.command} {urlsplit(self.path).path}")

    @property
    def _login(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._login != TOKEN):
            self._refuse(401 if not self._login else 404, "RepoNotFound")
        elif (found := repo.at(revision)) is None:
            self._refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def _info(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        siblings = [{"rfilename": file, "size": len(content)} for file, content in repo.files.items()]
        told = {"id": name, "sha": repo.commit, "private": repo.private, "gated": repo.gated, "siblings": siblings}
        self._answer(told)

    def _tree(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision)) is not None:
            self._answer([
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in repo.files.items()
            ])  # fmt: skip

    def _file(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        if repo.gated and self._login != TOKEN:
            self._refuse(401 if not self._login else 403, "GatedRepo")
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send_file(file, repo)

    def _send_file(self, file: str, repo: Repo) -> None:
        content = repo.files[file]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        status, more = 200, {"ETag": etag, "X-Repo-Commit": repo.commit, "X-Linked-Size": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            status, more["Content-Range"] = 206, f"bytes {begin}-{end}/{len(content)}"
            content = content[begin : end + 1]
        if self.command == "GET":
            self.hub.sent[file] = self.hub.sent.get(file, 0) + len(content)
        self._reply(status, content, "application/octet-stream", more)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not name.startswith(f"{OWNER}/"):
            self._refuse(403, message="You don't have the rights to create a model under this namespace")
            return
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repos[name] = Repo({}, private=bool(private))
        self._answer({"url": f"{self.hub.address}/{name}", "name": name})

    def _modes(self, asked: dict[str, Any]) -> None:
        files = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            for file in asked["files"]
        ]  # fmt: skip
        self._answer({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        if self.hub.full:
            self._refuse(413, message="Storage limit reached")
            return
        upload = f"{self.hub.address}/lfs/"
        objects = [
            {**held, "actions": {"upload": {"href": upload + held["oid"], "header": {}}}} for held in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
        self._answer({"commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self._reply(status, b"{}", "application/json", {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, found: Any) -> None:
        self._reply(200, json.dumps(found).encode(), "application/json", {})

    def _reply(self, status: int, content: bytes, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, and an environment in which every command asks that one, as `quantize.hub` in this process does, and
    keeps what it fetches in `home`."""
    with serving() as found:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "OMNI_HUB_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))  # read before, here
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield found


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    with running(server):
        yield hub
