"""A model on a hub: what it is by its headers alone, and its files in the hub's cache on this disk.

Reads with the login of whoever runs this: HF_TOKEN or `hf auth login`. HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize import checkpoint
from quantize.checkpoint import INDEX, MODELOPT, Checkpoint, Tensor
from quantize.errors import DoesNotFit, ModelUnusable
from quantize.estimate import GB, NO_DOWNLOAD, Download, existing
from quantize.progress import Tell, silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ID = re.compile(r"(?:https://huggingface\.co/)?([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w.-][\w./-]*))?/?")
"""As people copy it from a browser too."""
_NOT_NEEDED = {".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".wav", ".mp3", ".pdf"}
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".safetensors"}


class _Unreachable(ModelUnusable):
    """Nobody answers at the hub's address."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A model that lies on a hub, read without its weights."""

    repo: str
    commit: str
    checkpoint: Checkpoint
    """Its `folder` is not on this disk; all else is as of a local model."""
    files: Mapping[str, int]
    """Bytes of each file that quantizing needs."""
    absent: int
    """Bytes of those that the cache does not have yet."""

    def download(self, output: Path) -> Download:
        """What fetching it takes, beside a result in `output`."""
        cache, out = existing(_cache()), existing(output)
        return Download(self.absent, shutil.disk_usage(cache).free, cache.stat().st_dev == out.stat().st_dev)


def is_id(source: str) -> bool:
    """Whether this names a model on a hub (owner/name or owner/name@revision); a folder of that name goes first."""
    return bool(_ID.fullmatch(source)) and not Path(source).exists()


def resolve(source: str, output: Path) -> tuple[Checkpoint, Download]:
    """A model that can be quantized, from a folder or a hub, by headers alone; and what fetching it would take.

    Raises ModelUnusable.
    """
    if not is_id(source):
        return checkpoint.read_source(Path(source)), NO_DOWNLOAD
    try:
        found = look(source)
    except _Unreachable:
        return checkpoint.read_source(_cached(source)), NO_DOWNLOAD
    return found.checkpoint, found.download(output)


def look(source: str) -> Remote:
    """What the model is, from config.json and the headers of its weights, over HTTP ranges.

    Raises ModelUnusable: no such model, gated, not safetensors, cannot be quantized, or the hub cannot be reached.
    """
    repo, revision = _parsed(source)
    with _told(source):
        api = _api()
        info = api.model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        held = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if "config.json" not in held:
            raise ModelUnusable(f"{source} is not a model: there is no config.json in it.")
        config = json.loads(Path(api.hf_hub_download(repo, "config.json", revision=commit)).read_text())
        if not isinstance(config, dict):
            raise ModelUnusable(f"config.json of {source} is not a model's configuration; name another revision.")
        tensors = _tensors(api, repo, commit)
    found = Checkpoint(Path(repo), config, tensors)
    checkpoint.require_source(found, source, MODELOPT in held)
    files = {name: size for name, size in held.items() if _needed(name, set(found.files))}
    return Remote(repo, commit, found, files, _absent(repo, commit, files))


def fetch(source: str, tell: Tell = silent) -> Path:
    """The model's folder in the hub's cache, downloaded as far as it is not there yet.

    Where the hub cannot be reached, a copy that is whole in the cache does. Raises as `look`, and DoesNotFit.
    """
    from huggingface_hub import snapshot_download

    try:
        found = look(source)
    except _Unreachable:
        return _cached(source)
    free = shutil.disk_usage(existing(_cache())).free
    if found.absent > free:
        raise DoesNotFit(
            f"{source} takes {found.absent / GB:.1f} GB more in {_cache()} and {free / GB:.1f} GB are free there; "
            f"free {(found.absent - free) / GB:.1f} GB, or name another disk's folder in HF_HUB_CACHE."
        )
    tell("fetch", 0, found.absent, source)
    with _told(source):
        folder = snapshot_download(
            found.repo, revision=_parsed(source)[1], allow_patterns=[literal(name) for name in found.files],
            endpoint=address(), tqdm_class=_bars(lambda done: tell("fetch", done, found.absent, source)),
        )  # fmt: skip
    tell("fetch", found.absent, found.absent, source)
    return Path(folder)


def _parsed(source: str) -> tuple[str, str | None]:
    match = _ID.fullmatch(source)
    assert match is not None  # callers ask is_id first
    return match[1], match[2]


def address() -> str:
    """Of the hub, without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def transport_error() -> type[Exception]:
    """What huggingface_hub raises where nobody answers: HTTPError of httpx, or of httpx2 from its release 2 on."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=address())


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _tensors(api: HfApi, repo: str, commit: str) -> dict[str, Tensor]:
    headers = api.get_safetensors_metadata(repo, revision=commit).files_metadata
    return {
        name: Tensor(name, held.dtype, tuple(held.shape), held.data_offsets[1] - held.data_offsets[0], file)
        for file, header in headers.items()
        for name, held in header.tensors.items()
    }


def _needed(name: str, weights: set[str]) -> bool:
    """Weights that the index names and small files beside them; no second copy of the weights, no pictures."""
    if "/" in name or name.startswith("."):
        return False
    suffix = Path(name).suffix.lower()
    return name in weights or name == INDEX or not (suffix in _OTHER_WEIGHTS or suffix in _NOT_NEEDED)


def _absent(repo: str, commit: str, files: Mapping[str, int]) -> int:
    from huggingface_hub import try_to_load_from_cache

    held = {name for name in files if isinstance(try_to_load_from_cache(repo, name, revision=commit), str)}
    return sum(size for name, size in files.items() if name not in held)


def _cached(source: str) -> Path:
    """A whole copy that an earlier run left, with the hub out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = _parsed(source)
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns="config.json"))
    except LocalEntryNotFoundError as error:
        raise _unreachable(source) from error
    checkpoint.read_source(folder)
    return folder


def literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _bars(note: Callable[[int], None]) -> type[Any]:
    """A class of progress bars that only count: bytes on disk over all files, as huggingface_hub adds them up."""
    from tqdm import tqdm

    class Counting(tqdm):  # type: ignore[misc]
        def display(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is drawn: a log is no terminal."""

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            if self.unit == "B":
                note(int(self.n))
            return drawn

    return Counting


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with the way out."""
    from huggingface_hub import errors

    repo, revision = _parsed(source)
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelUnusable(
            f"{repo} is gated: accept its terms on its page at the hub, then log in (`hf auth login`) or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnusable(f"{repo} has no revision {revision}; name a branch, a tag or a commit.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnusable(
            f"There is no folder {source} here and no model of that name at the hub that you may see; "
            "check the name, or if it is private log in (`hf auth login`) or set HF_TOKEN."
        ) from error
    except (errors.EntryNotFoundError, errors.NotASafetensorsRepoError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _unreachable(source) from error
        raise ModelUnusable(f"{source} has no weights as safetensors; name a model that has.") from error
    except (errors.SafetensorsParsingError, ValueError) as error:
        raise ModelUnusable(f"The files of {source} are damaged at the hub; name another revision.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way = "log in again, its token is not accepted" if status == 401 else "try again later"
        raise ModelUnusable(f"The hub answered {status} for {repo}; {way}.") from error
    except (transport_error(), errors.OfflineModeIsEnabled) as error:
        raise _unreachable(source) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DoesNotFit(f"The disk of {_cache()} ran full; free some space there and start again.") from error


def _unreachable(source: str) -> _Unreachable:
    return _Unreachable(
        f"The hub cannot be reached and {source} is not whole in {_cache()}; check the network, "
        "or name a model folder on this machine."
    )
