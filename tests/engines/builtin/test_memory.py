"""What the models hold after their work, each in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from omni_app.engines.builtin.look import _readable

_MEASURE = """
import re
from pathlib import Path
from omni_app.engines.builtin.assets import EFFICIENTNET, IMAGENET_NAMES, KOKORO_MODEL, KOKORO_VOICES, RAPIDOCR
from omni_app.engines.builtin.assets import fetch, packaged
from omni_app.engines.builtin.memory import return_large_blocks
from omni_app.settings import Settings

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

cache = Settings().cache_dir
return_large_blocks()
"""
_LOOK = """
from PIL import Image, ImageDraw, ImageFont
from omni_app.engines.builtin.look import Looker

def page(width, height):
    image = Image.new("RGB", (width, height), "white")
    for y in range(20, height - 40, height // 12):
        text = "A long line of quite readable text"
        ImageDraw.Draw(image).text((20, y), text, fill="black", font=ImageFont.load_default(size=height // 20))
    return image

looker = Looker(fetch(EFFICIENTNET, cache), fetch(IMAGENET_NAMES, cache), packaged(RAPIDOCR))
looker.look(page(300, 200))
before = resident_mb()
for size in ((960, 640), (1024, 768), (4000, 3000), (700, 1000)):
    assert looker.look(page(*size)).lines
print("grown by", resident_mb() - before)
"""
_SPEAK = """
from omni_app.engines.builtin.kokoro import KokoroVoices

voices = KokoroVoices(fetch(KOKORO_MODEL, cache), fetch(KOKORO_VOICES, cache), 1)
voices.synthesize("Ready.", "jm_kumo", lambda: False)
before = resident_mb()
text = "Ships carry goods across the sea, and some of them are so large that a whole town could live on one of them."
assert len(voices.synthesize(text, "jm_kumo", lambda: False))
print("grown by", resident_mb() - before)
"""


@pytest.mark.models
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("work", "most_mb"), [(_LOOK, 60), (_SPEAK, 60)], ids=["look", "speak"])
def test_what_a_model_needed_is_given_back(work: str, most_mb: int) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURE + work], capture_output=True, text=True)
    grown = re.search(r"grown by (-?\d+)", done.stdout)
    assert grown is not None, done.stderr
    assert int(grown[1]) < most_mb


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1), (640, 480), (4000, 3000)])
def test_a_picture_is_made_small_enough_to_read(size: tuple[int, int]) -> None:
    small = _readable(Image.new("RGBA", size, "red"))
    assert small.mode == "RGB"
    assert max(small.size) == min(max(size), 1024)
    assert small.getpixel((0, 0)) == (255, 0, 0)
