"""A Hugging Face Space: what is different there, and which files of ours it needs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from omni_app.errors import BadRequest
from omni_app.settings import Settings

PROJECT = Path(__file__).parent.parent
PERSISTENT = Path("/data")
"""Where a Space has its persistent storage, when it was given one."""
NEEDED = (
    "README.md",
    "LICENSE",
    "app.py",
    "requirements.txt",
    "requirements-serve.txt",
    "omni_app",
    "quantize",
    "assets",
)
"""The Quantize page runs `quantize` for its estimates, and the serve list says what a server's environment needs."""
LIMITS = {"visitor_replies": 2, "visitor_per_minute": 20, "proxies": 1, "idle_minutes": 30.0}
"""What a public Space sets where its owner has not: strangers share one small machine behind one proxy."""
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
"""What a Space with `hf_oauth: true` is told of its OAuth application."""
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def is_space(environ: Mapping[str, str] = os.environ) -> bool:
    return bool(environ.get("SPACE_ID"))


def hosts(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The public names of this Space, its own domain included; empty elsewhere."""
    return frozenset(_hosts(environ))


def home(environ: Mapping[str, str] = os.environ) -> str:
    """The first of the public names, which the hub sends visitors back to; empty elsewhere."""
    return next(iter(_hosts(environ)), "")


def _hosts(environ: Mapping[str, str]) -> list[str]:
    names = environ.get("SPACE_HOST", "").split(",") if is_space(environ) else []
    return [name.strip().lower() for name in names if name.strip()]


def adapted(settings: Settings, environ: Mapping[str, str] = os.environ, persistent: Path = PERSISTENT) -> Settings:
    """The settings, and on a Space its address, folders and limits wherever nothing else was asked for."""
    if not is_space(environ):
        return settings
    folder = persistent if os.access(persistent, os.W_OK) else Path(tempfile.gettempdir())
    wanted = {
        "host": environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        "port": int(environ.get("GRADIO_SERVER_PORT", "7860")),
        "data_dir": folder / "omni-app",
        "cache_dir": folder / "omni-app-cache",
        **LIMITS,
        "hub_login": "optional" if all(environ.get(name) for name in OAUTH) else "off",
    }
    asked_for = settings.model_fields_set
    return settings.model_copy(update={name: value for name, value in wanted.items() if name not in asked_for})


def lay_out(folder: Path, project: Path = PROJECT) -> list[Path]:
    """Copy what a Space needs into a new or empty folder; returns the files, relative to it. Raises BadRequest."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadRequest(f"{folder} is not an empty folder. Name a new one, or empty it first.")
    try:
        for source in sorted(set(_files(project))):
            target = folder / source.relative_to(project)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise BadRequest(f"The Space could not be written to {folder} ({error.strerror or error}).") from error
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _files(project: Path) -> Iterator[Path]:
    """What runs, and whatever the README shows or links to."""
    linked = _LINK.findall((project / "README.md").read_text())
    for name in (*NEEDED, *linked):
        path = project / name
        inside = path.rglob("*") if path.is_dir() else (path,)
        yield from (file for file in inside if file.is_file() and not _is_leftover(file.relative_to(project)))


def _is_leftover(path: Path) -> bool:
    return path.suffix in (".pyc", ".pyi") or any(part.startswith(".") or part == "__pycache__" for part in path.parts)
