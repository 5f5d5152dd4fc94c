"""The app in a process of its own with folders of its own, and what that process holds: the thing under soak.

`python -m tests.soak.app DATA [--engine builtin] [--word-seconds 0.2]` prints its address once it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
KEPT = "visitors"
"""The folder of the data folder that visitors fill on purpose."""
COPY = re.compile(r"/gradio/[0-9a-f]{64}/[^/]+$")
"""An upload, or a kept file that the page has shown; Gradio removes each after a day."""


@dataclass(frozen=True)
class Holdings:
    """What the app holds at one moment."""

    rss_mb: float
    threads: int
    open_files: int
    temporary_files: int
    temporary_mb: float


@dataclass(frozen=True)
class App:
    """A running app: its address, its process, its data folder and the only folder for temporary files it knows."""

    url: str
    process: psutil.Process
    data: Path
    temporary: Path

    def holdings(self) -> Holdings:
        files = self.leftovers()
        sizes = [_size(path) for path in files]
        with self.process.oneshot():
            rss, threads = self.process.memory_info().rss, self.process.num_threads()
        return Holdings(rss / 1e6, threads, self.process.num_fds(), len(files), sum(sizes) / 1e6)

    def leftovers(self) -> list[Path]:
        """Every file of the two folders except what visitors keep, and the page's copies of that."""
        # unlike rglob, os.walk goes on when a folder is removed while it looks
        walked = [*os.walk(self.data), *os.walk(self.temporary)]
        inside = [Path(folder, name) for folder, _, names in walked for name in names]
        return [path for path in inside if KEPT not in path.parts and not COPY.search(str(path))]


@contextlib.contextmanager
def running(
    engine: str = "scripted",
    word_seconds: float = 0.0,
    most_replies: int = 64,
    port: int = 0,
    prefix: Sequence[str] = (),
    folder: Path | None = None,
) -> Iterator[App]:
    """The app until the block ends; on a free port and in a new folder unless others are named. `prefix` is a command
    that runs the app."""
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="soak-") as held:
        data, temporary = Path(held) / "data", Path(held) / "tmp"
        command = [*prefix, sys.executable, "-m", "tests.soak.app", str(data), "--engine", engine]
        command += ["--word-seconds", str(word_seconds), "--most-replies", str(most_replies)]
        command += ["--port", str(port)]
        environment = os.environ | {"TMPDIR": str(temporary)}
        environment.pop("GRADIO_TEMP_DIR", None)  # where an app of this process keeps its uploads
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
            try:
                assert process.stdout is not None
                url = next(line.split()[1] for line in process.stdout if line.startswith("up "))
                yield App(url, psutil.Process(process.pid), data, temporary)
            finally:
                process.kill()


def _size(path: Path) -> int:
    # a request may end, and take its files along, while we count them
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def main() -> None:
    from omni_app.runner import Runner
    from omni_app.settings import Settings
    from omni_app.ui.launch import choose, serve
    from tests.scripted import ScriptedEngine

    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--engine", choices=("scripted", "builtin"), default="scripted")
    parser.add_argument("--word-seconds", type=float, default=0.0)
    parser.add_argument("--most-replies", type=int, default=64)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    for folder in (given.data, Path(os.environ.get("TMPDIR", given.data))):
        folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(data_dir=given.data, port=given.port, engine="builtin", max_replies=given.most_replies)
    engine = ScriptedEngine(given.word_seconds) if given.engine == "scripted" else choose(settings)[0]
    demo, url = serve(settings, Runner(engine, "Chosen by the soak test.", given.most_replies))
    print(f"up {url}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
