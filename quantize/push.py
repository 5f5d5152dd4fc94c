"""A finished model to a hub: with the token of whoever it belongs to, and private unless said otherwise."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantize import checkpoint, hub
from quantize import folder as folders
from quantize.errors import BadRequest, QuantizeError
from quantize.progress import Tell, silent

VISITOR_TOKEN = "OMNI_HUB_TOKEN"
"""Holds a visitor's own token for one call on a page that several people use; `HF_TOKEN` would be the server's."""
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class PushFailed(QuantizeError):
    """The hub did not take the files. A repository that was half filled stays private and is completed by a retry."""


@dataclass(frozen=True, slots=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Upload:
    """Exactly what a push would send."""

    repo: str
    url: str
    private: bool
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, **asdict(self)}

    def table(self) -> str:
        rows = [f"{file.bytes:>16,}  {file.sha256[:12]}  {file.name}" for file in self.files]
        kind = "private" if self.private else "PUBLIC"
        return "\n".join([f"{kind} {self.url}", *rows, f"{self.bytes:>16,}  in {len(self.files)} files"])


def own_token(visitor: bool) -> str:
    """The caller's own token. Raises BadRequest where there is none.

    visitor: whether a page asks for somebody; then only that person's token counts, never this machine's login.
    """
    from huggingface_hub import get_token

    token = os.environ.get(VISITOR_TOKEN) if visitor else get_token()
    if not token:
        way = "log in on the page" if visitor else "run `hf auth login`, or set HF_TOKEN to a token that may write"
        raise BadRequest(f"Pushing takes your own login at the hub, and there is none: {way}.")
    return token


def listing(folder: Path, repo: str, private: bool = True, tell: Tell = silent) -> Upload:
    """What would be uploaded; nothing is sent, and no login is needed.

    Raises BadRequest for a folder that is no finished model or an impossible name.
    """
    if not _NAME.fullmatch(repo):
        raise BadRequest(f"{repo!r} is no repository's name; write it as owner/name.")
    checkpoint.read(folder)
    if not (folder / "README.md").is_file():
        raise BadRequest(f"{folder} has no model card; only a finished result is pushed.")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = []
    for number, path in enumerate(paths, 1):
        files.append(File(path.name, path.stat().st_size, _sha256(path)))
        tell("hash", number, len(paths), path.name)
    return Upload(repo, f"{hub.address()}/{repo}", private, tuple(files))


def push(folder: Path, repo: str, token: str, private: bool = True, tell: Tell = silent) -> str:
    """Upload every file that `listing` names, remove those of a model pushed there before that it has not, and return
    the address.

    token: of the user whom the repository will belong to.
    Raises BadRequest, and PushFailed where the hub or the network refuses.
    """
    if not token:
        raise BadRequest("Pushing takes the user's own token; this machine's login is never used for somebody else.")
    upload = listing(folder, repo, private, tell)
    with _told(repo):
        _send(folder, upload, token, tell)
    return upload.url


def _send(folder: Path, upload: Upload, token: str, tell: Tell) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(endpoint=hub.address(), token=token)
    try:
        _require_visibility(upload, bool(api.model_info(upload.repo).private))
    except RepositoryNotFoundError:
        api.create_repo(upload.repo, private=upload.private)
    parts, sent = list[CommitOperationAdd](), 0
    for file in upload.files:
        tell("push", sent, upload.bytes, file.name)
        parts.append(CommitOperationAdd(file.name, folder / file.name))
        api.preupload_lfs_files(upload.repo, parts[-1:])  # what is no weights goes with the commit
        sent += file.bytes
    stale = _stale((file.rfilename for file in api.model_info(upload.repo).siblings or ()), upload)
    api.create_commit(
        upload.repo, [*parts, *map(CommitOperationDelete, stale)], commit_message="Upload quantized model",
        commit_description=f"Removes of the model that was here before: {', '.join(stale)}." if stale else None,
    )  # fmt: skip
    tell("push", sent, upload.bytes, "")


def _stale(there: Iterable[str], upload: Upload) -> list[str]:
    """Of what is in the repository, the weights of a model pushed before and what describes it. A server would take
    the former for this model's, or find by an old index that parts are missing."""
    new = {file.name for file in upload.files}
    old = (name for name in there if "/" not in name and (name.endswith(".safetensors") or name in folders.OURS))
    return sorted(name for name in old if name not in new)


def _require_visibility(upload: Upload, private: bool) -> None:
    """A repository that exists keeps its visibility, so what was asked for must be what it has."""
    if private != upload.private:
        has, asked = ("private", "public") if private else ("public", "private")
        raise BadRequest(f"{upload.repo} exists and is {has}, not {asked}; name another repository or change that one.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _told(repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way = {
            401: "log in again, its token is not accepted",
            403: f"use a token that may write to {repo.split('/')[0]}",
            404: f"check the name and use a token that may write to {repo.split('/')[0]}",
            409: "it exists, and this login may not see it; name another repository or use a token that may",
            413: "it has no room for so many bytes there",
        }.get(status, "try again later; what was sent is kept and not sent twice")
        raise PushFailed(f"The hub answered {status} for {repo}: {way}.") from error
    except (hub.transport_error(), errors.OfflineModeIsEnabled) as error:
        raise PushFailed(f"The hub cannot be reached; check the network and push again to {repo}.") from error
