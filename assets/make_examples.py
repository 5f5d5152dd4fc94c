"""Make the example files of the empty page: a drawn sign, a spoken question, and a clip with both.

    python assets/make_examples.py          needs the builtin engine's models (make models)

Everything is our own: drawn with Pillow, spoken by the builtin engine's voice, put together with PyAV.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from omni_app.engines.builtin.speak import Speaker
from omni_app.media.audio import write_wav
from omni_app.settings import Settings

HERE = Path(__file__).parent
RATE = 24_000
FRAMES_PER_SECOND = 12
QUESTION = "Hello. What is the largest planet in the solar system?"
GUIDE = "Welcome to the harbour. The ferry to the island leaves at half past nine."


def sign(size: tuple[int, int] = (960, 640)) -> Image.Image:
    """A harbour sign against sea and sky."""
    picture = Image.new("RGB", size, "#9fd3f0")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 430, size[0], size[1]), fill="#2b6f9e")
    for row in range(5):
        draw.arc((-200 + row * 260, 440 + row * 34, 260 + row * 260, 520 + row * 34), 200, 340, fill="#5fa3cc", width=4)
    draw.ellipse((790, 50, 890, 150), fill="#ffd75e")
    for left in (300, 640):
        draw.rectangle((left, 380, left + 20, 600), fill="#6b4a2b")
    draw.rounded_rectangle((160, 120, 800, 400), 24, fill="#f7f3e8", outline="#6b4a2b", width=10)
    lines = [("HARBOUR FERRY", 64), ("to the island: 9:30", 44), ("Dogs welcome", 44)]
    for number, (text, height) in enumerate(lines):
        draw.text((480, 185 + number * 75), text, "#20303c", ImageFont.load_default(height), anchor="mm")
    return picture


def spoken(speaker: Speaker, text: str) -> np.ndarray:
    """int16 samples at 24 kHz."""
    return np.asarray(speaker.synthesize(text, "jm_kumo"), dtype=np.int16)


def clip(path: Path, picture: Image.Image, samples: np.ndarray) -> None:
    """A slow zoom over the picture with the speech as its sound: MP4, H.264 and AAC."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        film.width, film.height, film.pix_fmt = 640, 428, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for number, frame in enumerate(_zoom(picture, round(len(samples) / RATE * FRAMES_PER_SECOND))):
            shown = av.VideoFrame.from_image(frame)
            shown.pts, shown.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(film.encode(shown))
        container.mux(film.encode())
        heard = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        heard.sample_rate = RATE
        container.mux(sound.encode(heard))
        container.mux(sound.encode())


def _zoom(picture: Image.Image, count: int) -> Iterator[Image.Image]:
    for number in range(count):
        inset = 80 * number / max(1, count)
        box = (inset, inset * 0.67, picture.width - inset, picture.height - inset * 0.67)
        yield picture.resize((640, 428), Image.Resampling.BICUBIC, box)


def main() -> None:
    speaker = Speaker(Settings(builtin_speech="kokoro"))
    speaker.load()
    picture = sign()
    picture.save(HERE / "sign.png", optimize=True)
    write_wav(HERE / "question.wav", spoken(speaker, QUESTION).tobytes(), RATE)
    clip(HERE / "clip.mp4", picture, spoken(speaker, GUIDE))
    speaker.close()


if __name__ == "__main__":
    main()
