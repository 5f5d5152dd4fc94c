"""The way in: addresses, names, limits, clocks and full disks."""

import base64
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from omni_app.errors import BadRequest, DiskFull, MediaRejected
from omni_app.media import check_count, check_text, display_name, ingest_data_url, intake
from omni_app.media.job import Job
from omni_app.media.limits import Deadline
from tests.media import makers


def _url(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


@pytest.mark.anyio
async def test_a_data_url_is_taken_whatever_it_calls_itself(into: Path, limits) -> None:
    part = await ingest_data_url(_url(makers.wav(makers.sine(1)), "image/png"), into=into, limits=limits)
    assert (part.kind, part.name) == ("audio", "attachment")


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["http://127.0.0.1/x.png", "https://a.b/c", "file:///etc/passwd", "FTP://x/y", "x"])
async def test_addresses_are_never_fetched(into: Path, limits, address: str) -> None:
    with pytest.raises(MediaRejected, match=r"we never fetch addresses. Send the file itself"):
        await ingest_data_url(address, into=into, limits=limits)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,####", "not valid base64"),
        ("data:image/png;base64,iVBOR", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("data:image/png,plain", "not a base64 data URL"),
        ("data:image/png;base64", "not a base64 data URL"),
        ("data:image/png;base64,", "is empty"),
    ],
)
async def test_damaged_data_urls(into: Path, limits, url: str, says: str) -> None:
    with pytest.raises(MediaRejected, match=says):
        await ingest_data_url(url, into=into, limits=limits)


@pytest.mark.anyio
async def test_a_data_url_over_the_limit_is_refused_before_it_is_decoded(into: Path, limits, monkeypatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(MediaRejected, match=r"has 1.6 MB; files may have at most 1 MB"):
        await ingest_data_url("data:;base64," + "A" * 2_100_000, into=into, limits=replace(limits, max_upload_mb=1))


@pytest.mark.anyio
async def test_a_file_over_the_limit_is_refused(take, limits, tmp_path: Path) -> None:
    small = replace(limits, max_upload_mb=1)
    path = tmp_path / "big.bmp"
    path.write_bytes(bytes(10**6 + 1))
    for source in (path, bytes(10**6 + 1)):
        with pytest.raises(MediaRejected, match=r"“big.bmp” has 1.1 MB; files may have at most 1 MB. Send a shorter"):
            await take(source, "big.bmp", limits=small)


@pytest.mark.parametrize("good", [makers.clip(), makers.wav(makers.sine(5)), makers.picture(makers.noise(), "PNG")])
@pytest.mark.parametrize("checks", [0, 1, 2, 3])
def test_work_that_takes_too_long_stops_with_a_word_and_leaves_nothing(into: Path, limits, good, checks: int) -> None:
    ticks = iter([0.0] * (checks + 2))
    deadline = Deadline(30, clock=lambda: next(ticks, 31.0))
    with pytest.raises(MediaRejected, match=r"“x” takes longer than 30 seconds to read. Send a shorter"):
        intake._ingest(good, "x", into, limits, deadline)
    assert list(into.iterdir()) == []


def _kept(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.anyio
async def test_cancelling_stops_the_work_and_leaves_nothing(take, into: Path, monkeypatch) -> None:
    started, ended = threading.Event(), threading.Event()

    def endless(job: Job) -> None:
        job.target(".jpg").write_bytes(b"half a picture")
        started.set()
        assert job.deadline._cancelled.wait(60)
        job.deadline.check()

    def watched(*args: object) -> None:
        try:
            whole(*args)
        finally:
            ended.set()

    whole = intake._ingest
    monkeypatch.setattr(intake, "_normalise", endless)
    monkeypatch.setattr(intake, "_ingest", watched)
    async with anyio.create_task_group() as group:
        group.start_soon(take, b"x")
        assert await anyio.to_thread.run_sync(started.wait, 60)
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(ended.wait, 60)
    assert _kept(into) == []


_FULL_DISK = """
import anyio, pathlib, resource, sys
from omni_app.media import Limits, ingest
from omni_app.settings import Settings
source, into = map(pathlib.Path, sys.argv[1:])
limits = Limits.of(Settings())
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    anyio.run(lambda: ingest(source, name="x", into=into, limits=limits))
except Exception as error:
    print(type(error).__name__, error, len(list(into.iterdir())), sep="|")
"""


@pytest.mark.parametrize("good", [makers.clip(), makers.wav(makers.sine(5)), makers.picture(makers.noise(), "PNG")])
def test_a_full_disk_gets_a_plain_word_and_leaves_nothing(tmp_path: Path, good: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(good)
    child = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(source), str(tmp_path / "into")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    kind, message, left = child.stdout.strip().split("|")
    assert (kind, left) == (DiskFull.__name__, "0")
    assert message.startswith("“x” could not be kept: the disk of this server is full. Free some disk space there")


def test_a_start_without_media_loads_no_ffmpeg() -> None:
    code = "import sys, omni_app.media, omni_app.media.audio; sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_long_texts_and_many_files_name_the_limit(limits) -> None:
    check_text("x" * 20_000, limits)
    check_count(8, limits)
    with pytest.raises(BadRequest, match=r"100,000 characters; at most 20,000 are taken. Shorten it"):
        check_text("x" * 100_000, limits)
    with pytest.raises(BadRequest, match=r"9 files; at most 8 are taken"):
        check_count(9, limits)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\photo.png", "photo.png"),
        ("a\0b\n\x1b[31mc.png", "ab [31mc.png"),
        ("gpj\u202egnp.exe", "gpjgnp.exe"),
        ("  two   words .png ", "two words .png"),
        ("日本語 ñ 🎈.jpg", "日本語 ñ 🎈.jpg"),
        ("", "unnamed file"),
        ("..", "unnamed file"),
        ("folder/", "unnamed file"),
        ("x" * 200 + ".webm", "x" * 74 + "….webm"),
        ("\ud800bad.png", "bad.png"),
    ],
)
def test_names_are_safe_to_show(name: str, shown: str) -> None:
    assert display_name(name) == shown
    assert len(display_name(name)) <= 80
