"""Every file of the hostile corpus meets its fate, leaves nothing behind and takes little memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omni_app.conversation import Part
from omni_app.errors import MediaRejected
from omni_app.media import display_name
from tests.media import hostile

MEMORY_MB = 300
"""Peak of a process that takes the whole corpus: Python with FFmpeg and numpy is 100 MB of it. One bomb alone, were
it decoded, would take 2.5 GB."""


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: case.file)
async def test_each_file_meets_its_fate(case: hostile.Case, take, into: Path, tmp_path: Path) -> None:
    if not case.as_root and os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = case.write(tmp_path)
    if case.kind:
        _check_accepted(case, await take(path, case.sent_name), into)
        return
    with pytest.raises(MediaRejected) as rejected:
        await take(path, case.sent_name)
    message = str(rejected.value)
    assert re.search(case.says, message), message
    assert display_name(case.sent_name) in message
    assert str(tmp_path) not in message
    assert _kept(into) == []


def _kept(into: Path) -> list[Path]:
    return list(into.iterdir()) if into.exists() else []


def _check_accepted(case: hostile.Case, part: Part, into: Path) -> None:
    assert part.kind == case.kind
    assert part.path is not None
    assert _kept(into) == [part.path]
    assert re.fullmatch(r"[0-9a-f]{32}\.\w{3,4}", part.path.name)
    assert part.name == (case.shown or case.sent_name)
    if case.notes is not None:
        assert bool(part.note) == bool(case.notes), part.note
        assert re.search(case.notes, part.note)


_CHILD = """
import anyio, pathlib, sys
from omni_app.errors import MediaRejected
from omni_app.media import Limits, ingest
from omni_app.settings import Settings

async def main(folder):
    for path in sorted(folder.glob("*/*")):
        try:
            await ingest(path, name=path.name, into=folder / "kept", limits=Limits.of(Settings()))
        except MediaRejected:
            pass

anyio.run(main, pathlib.Path(sys.argv[1]))
status = pathlib.Path("/proc/self/status").read_text()  # not ru_maxrss, which a child inherits
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own count of a process's memory")
def test_the_whole_corpus_fits_in_little_memory(tmp_path: Path) -> None:
    written = hostile.build(tmp_path)
    assert len(written) == len(hostile.CASES)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, timeout=240, check=True
    )
    assert int(child.stdout.split()[-1]) < MEMORY_MB


@pytest.mark.anyio
async def test_a_picture_loses_the_archive_hidden_behind_it(take, tmp_path: Path) -> None:
    case = next(case for case in hostile.CASES if case.file == "zip-inside.jpg")
    path = case.write(tmp_path)
    part = await take(path)
    assert b"PK\x03\x04" in path.read_bytes()
    assert b"PK\x03\x04" not in part.path.read_bytes()
