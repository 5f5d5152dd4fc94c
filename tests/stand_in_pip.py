"""A program in pip's place, so that the quantizer's environment is built at once: it links what another one has.

PYTHONPATH puts it before the real pip of a fresh virtual environment. It waits for a file before the last step, and
fails while another one is there, so that a test sees each state for as long as it likes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, sysconfig, time
from pathlib import Path

folder = Path({folder!r})
print("the stand-in for pip:", *sys.argv[1:], flush=True)
if (folder / "no-network").exists():
    sys.exit("ERROR: the stand-in for pip reaches no package index")
while "-r" in sys.argv and not (folder / "go").exists():
    os.kill({tests}, 0)  # a test that failed leaves nothing behind
    time.sleep(0.05)
Path(sysconfig.get_path("purelib"), "linked.pth").write_text({packages!r})
"""


@dataclass(frozen=True)
class StandInPip:
    folder: Path

    def lose_network(self) -> None:
        (self.folder / "no-network").touch()

    def find_network(self) -> None:
        (self.folder / "no-network").unlink()

    def go(self) -> None:
        (self.folder / "go").touch()


def stand_in_pip(folder: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> StandInPip:
    """packages: the site-packages that an installation links."""
    place = folder / "stand-in/pip"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    script = SCRIPT.format(folder=str(folder), tests=os.getpid(), packages=f"{packages}\n")
    (place / "__main__.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(place.parent))
    return StandInPip(folder)
