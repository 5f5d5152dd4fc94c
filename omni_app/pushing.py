"""Finished models on their way to a hub: `python -m quantize push` for each, with the token of whoever asked.

An upload goes on when the page closes and ends with the app. The token is in the environment of that one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from omni_app.errors import BadRequest
from omni_app.jobs import Job, Step, Told
from omni_app.quantizing import ROOT, environment

TOKEN = "OMNI_HUB_TOKEN"
"""What `python -m quantize push --visitor` reads, and nothing else."""
NOT_THEIRS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
"""This machine's own login, which no visitor's upload may have."""
SAID_LINES = 5


class HubFile(Told):
    name: str
    bytes: int
    sha256: str


class Upload(Told):
    """Exactly what would be sent."""

    repo: str
    url: str
    private: bool
    bytes: int
    files: tuple[HubFile, ...]


class Push:
    """One look at what would be sent, or one upload; alive until its process ends.

    Exactly one of `upload`, `url` and `error` is set afterwards.
    """

    def __init__(self, folder: Path, repo: str, private: bool, token: str = "") -> None:
        """Begin. token: the visitor's own; without one, nothing is sent.

        Raises BadRequest for a name that no program could be given.
        """
        if "\0" in repo + token:
            raise BadRequest("A name or a token cannot hold a null character.")
        self.repo, self.private, self.sends = repo, private, bool(token)
        self.step: Step | None = None
        self.upload: Upload | None = None
        self.url = self.error = ""
        arguments = [*([] if private else ["--public"]), *([] if token else ["--dry-run"])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quantize", "push", "--visitor", *arguments, "--", str(folder), repo], cwd=ROOT,
            env=_environment(token), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._follow, args=(token,), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._reader.is_alive()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Until its process has ended and all that it said was read."""
        self._reader.join()

    def stop(self) -> None:
        """End it; what was sent so far stands in no repository yet, for the commit comes last."""
        self._process.kill()
        self.wait()
        self.error = "" if self.url else "Stopped. Begin it again at any time: what was sent is not sent twice."

    def _follow(self, token: str) -> None:
        with self._process as process:  # whose standard input ends with the app, and the upload with that
            assert process.stdout is not None
            said = deque(self._unread(process.stdout), SAID_LINES)
            code = process.wait()
        if not (self.error or (code == 0 and (self.url or self.upload))):
            words = next((line for line in reversed(said) if line.strip()), "it said nothing").strip()
            hidden = words.replace(token, "…") if token else words
            self.error = f"The upload broke off ({hidden[:200]}). Begin it again: what was sent is not sent twice."

    def _unread(self, lines: Iterable[str]) -> Iterable[str]:
        """Take in what the program tells; gives the lines that are not its own words."""
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if not isinstance(told, dict):
                yield line
            elif "stage" in told:
                self.step = Step.model_validate(told)
            elif "error" in told:
                self.error = self.error or str(told["error"])
            elif "url" in told and "files" not in told:
                self.url = str(told["url"])
            else:
                self.upload = Upload.model_validate(told)


class Pushes:
    """The last push of each job since the app started."""

    def __init__(self) -> None:
        self._by_job: dict[str, Push] = {}

    def of(self, job: Job) -> Push | None:
        return self._by_job.get(job.id)

    @property
    def busy(self) -> bool:
        return any(push.alive for push in self._by_job.values())

    def begin(self, job: Job, repo: str, private: bool, token: str = "") -> None:
        """Look at what would be sent, or with a token send it. Raises BadRequest."""
        if not repo.strip():
            raise BadRequest("Name the repository as owner/name.")
        if (current := self.of(job)) and current.alive:
            raise BadRequest(f"This model is on its way to {current.repo} already. Wait for it, or stop it.")
        self._by_job[job.id] = Push(Path(job.request.output), repo.strip(), private, token.strip())

    def stop(self, job: Job) -> None:
        if (current := self.of(job)) and current.alive:
            current.stop()


def _environment(token: str) -> dict[str, str]:
    inherited = {name: value for name, value in environment().items() if name not in NOT_THEIRS}
    # Bars for a terminal that nobody sees; and no login is taken from a file of this machine.
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": os.devnull}
    return inherited | quiet | ({TOKEN: token} if token else {})
