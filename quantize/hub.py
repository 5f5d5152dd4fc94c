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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
class Found:
    """A model that can be quantized, read without its weights; of a hub's, one commit, wherever its branch goes."""

    source: str
    checkpoint: Checkpoint
    """Its `folder` is on this disk unless there is a commit; all else is alike."""
    commit: str = ""
    """Empty for a folder on this disk."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file that quantizing needs of the hub."""
    absent: int = 0
    """Bytes of those that the cache does not have yet."""

    @property
    def looked_at(self) -> str:
        """The commit that this is, from the hub or from its cache; empty for a folder that somebody named."""
        return self.commit or (self.checkpoint.folder.name if is_id(self.source) else "")

    def download(self, output: Path) -> Download:
        """What fetching it takes, beside a result in `output`."""
        if not self.commit:
            return NO_DOWNLOAD
        cache, out = existing(_cache()), existing(output)
        return Download(self.absent, shutil.disk_usage(cache).free, cache.stat().st_dev == out.stat().st_dev)


def is_id(source: str) -> bool:
    """Whether this names a model on a hub (owner/name or owner/name@revision); a folder of that name goes first."""
    return bool(_ID.fullmatch(source)) and not Path(source).exists()


def resolve(source: str, commit: str = "") -> Found:
    """A model in a folder or on a hub. Where the hub cannot be reached, a copy that is whole in the cache does.

    commit: the one to take, whatever the source's branch is now; empty: that.
    Raises ModelUnusable.
    """
    if not is_id(source):
        return Found(source, checkpoint.read_source(Path(source)))
    try:
        return _look(source, commit)
    except _Unreachable:
        return Found(source, _cached(source, commit))


def _look(source: str, wanted: str) -> Found:
    """What the model is, from config.json and the headers of its weights, over HTTP ranges.

    Raises ModelUnusable: no such model, gated, not safetensors, cannot be quantized, or the hub cannot be reached.
    """
    repo, revision = _parsed(source)
    with _told(source, wanted):
        api = _api()
        info = api.model_info(repo, revision=wanted or revision, files_metadata=True)
        commit = str(info.sha)
        held = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if "config.json" not in held:
            raise ModelUnusable(f"{source} is not a model: there is no config.json in it.")
        config = json.loads(Path(api.hf_hub_download(repo, "config.json", revision=commit)).read_text())
        if not isinstance(config, dict):
            raise ModelUnusable(f"config.json of {source} is not a model's configuration; name another revision.")
        tensors = _tensors(api, repo, commit)
    model = Checkpoint(Path(repo), config, tensors)
    checkpoint.require_source(model, source, MODELOPT in held)
    files = {name: size for name, size in held.items() if _needed(name, set(model.files))}
    return Found(source, model, commit, files, _absent(repo, commit, files))


def fetch(found: Found, tell: Tell = silent) -> Path:
    """The model's folder, downloaded into the hub's cache as far as it is not there yet.

    Raises ModelUnusable where the hub does not give all of it, and DoesNotFit.
    """
    if not found.commit:
        return found.checkpoint.folder
    source, absent = found.source, found.absent
    free = shutil.disk_usage(existing(_cache())).free
    if absent > free:
        raise DoesNotFit(
            f"{source} takes {absent / GB:.1f} GB more in {_cache()} and {free / GB:.1f} GB are free there; "
            f"free {(absent - free) / GB:.1f} GB, or name another disk's folder in HF_HUB_CACHE."
        )
    tell("fetch", 0, absent, source)
    with _told(source):
        folder = _downloaded(found, lambda done: tell("fetch", done, absent, source))
    tell("fetch", absent, absent, source)
    return folder


def _downloaded(found: Found, note: Callable[[int], None]) -> Path:
    """note: is told the bytes so far."""
    from huggingface_hub import snapshot_download

    repo, revision = _parsed(found.source)
    patterns = [literal(name) for name in found.files]
    folder = Path(snapshot_download(
        repo, revision=found.commit, allow_patterns=patterns, endpoint=address(), tqdm_class=_bars(note),
    ))  # fmt: skip
    if not all((folder / name).exists() for name in found.files):  # it gives what it has when the hub refuses the rest
        raise ModelUnusable(f"The hub gave only a part of {found.source}; try again later.")
    _note_commit(folder, revision or "main")
    return folder


def _note_commit(snapshot: Path, revision: str) -> None:
    """Tell the cache which commit a branch or tag was, as huggingface_hub does where it looks that up itself.

    It is how `_cached` finds the copy. A cache that cannot be written to does without.
    """
    ref = snapshot.parents[1] / "refs" / revision
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(snapshot.name)


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


def _cached(source: str, commit: str) -> Checkpoint:
    """A whole copy that an earlier run left, with the hub out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = _parsed(source)
    try:
        wanted = commit or revision
        folder = Path(snapshot_download(repo, revision=wanted, local_files_only=True, allow_patterns="config.json"))
    except LocalEntryNotFoundError as error:
        raise _unreachable(source) from error
    return checkpoint.read_source(folder)


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
def _told(source: str, commit: str = "") -> Iterator[None]:
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
        raise ModelUnusable(
            f"{repo} has no revision {commit or revision}; name a branch, a tag or a commit."
        ) from error
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
