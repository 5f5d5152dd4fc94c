"""Pictures: the size is read from the header first, then one upright JPEG without metadata is made."""

from __future__ import annotations

import io
import struct
import threading
from contextlib import nullcontext
from typing import Literal

import numpy as np
from PIL import Image, ImageStat

from omni_app.conversation import Part
from omni_app.errors import MediaRejected
from omni_app.media.job import Job
from omni_app.media.limits import Overdue
from omni_app.media.sniff import Format

MAX_SIDE = 2048
_MAX_JPEG_WORK = 2_000
"""Megapixels times scans. A progressive JPEG may repeat scans of a few bytes without end, each a pass over the whole
picture (libjpeg-turbo's advisory LJT-01-004); real ones have about ten."""
_LARGE_PIXELS = 12_000_000
_one_large = threading.Lock()
"""Large pictures are decoded one at a time: at 50 megapixels WebP takes 0.8 GB for a moment, other formats 0.3."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def normalise(job: Job, found: Format) -> Part:
    """One JPEG of at most 2048 px: the first picture of an animation, upright, see-through parts on a plain ground."""
    picture, moves = _read(job, found)
    # through memory: Pillow writing to a full disk cuts the file short without a word
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=92, subsampling=0)
    target = job.target(".jpg")
    target.write_bytes(encoded.getbuffer())
    width, height = picture.size
    note = "Only the first picture of the animation is used." if moves else ""
    return Part("image", path=target, name=job.name, mime="image/jpeg", width=width, height=height, note=note)


def _read(job: Job, found: Format) -> tuple[Image.Image, bool]:
    """The decoded picture, and whether it is the first of several."""
    # Pillow's own guard stays on for others in this process; it must not be stricter than what the settings promise
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, job.limits.max_pixels)
    try:
        picture = Image.open(job.file, formats=[found.reader])
        _check_size(job, picture)
        # a phone's JPEG often carries a second, smaller copy of itself, which is no animation
        moves = found.reader != "JPEG" and bool(getattr(picture, "is_animated", False))
        with _one_large if picture.width * picture.height > _LARGE_PIXELS else nullcontext():
            return _decode(picture), moves
    except (MediaRejected, Overdue, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(job, "") from error
    except Exception as error:  # Pillow's readers raise a dozen types on damaged files, none of them documented
        raise job.rejected(f"is damaged or cut off: it is {found.words} that cannot be read. Save it again.") from error


def _check_size(job: Job, picture: Image.Image) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise job.rejected("is a picture without a single pixel. Choose another.")
    if width * height > job.limits.max_pixels:
        raise _too_many_pixels(job, f"{width} x {height} = {width * height / 1e6:,.0f} megapixels; ")
    if picture.format in ("JPEG", "MPO"):
        _check_scans(job, width * height / 1e6)


def _too_many_pixels(job: Job, size: str) -> MediaRejected:
    limit = job.limits.max_image_megapixels
    return job.rejected(f"is too large: {size}pictures may have at most {limit} megapixels. Send a smaller copy.")


def _check_scans(job: Job, megapixels: float) -> None:
    scans, place = 0, job.file.tell()
    job.file.seek(0)
    while chunk := job.file.read(2**20):
        scans += chunk.count(b"\xff\xda")
    job.file.seek(place)
    if scans > 100 and scans * megapixels > _MAX_JPEG_WORK:
        raise job.rejected(f"is a JPEG of {scans} layers, made to be slow to read. Save it again in a usual form.")


def _decode(picture: Image.Image) -> Image.Image:
    """Decoded, scaled, upright RGB without any metadata."""
    turn = _turn(picture)
    see_through = picture.has_transparency_data
    picture.draft(None, (MAX_SIDE, MAX_SIDE))  # a JPEG can be decoded smaller in the first place
    small = _reduce(_to_eight_bits(picture), "RGBA" if see_through else "RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    flat = _flatten(small) if see_through else small
    upright = flat.transpose(turn) if turn is not None else flat
    upright.info = {}
    return upright


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright, by its EXIF block; a damaged block tells nothing and is no reason to refuse."""
    try:
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error):
        return None


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Pictures of 16 or 32 bits a pixel have no agreed range: spread what is there over eight bits."""
    if picture.mode[0] not in "IF":
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) * (255 / ((high - low) or 1))).astype(np.uint8))


def _reduce(picture: Image.Image, mode: Literal["RGB", "RGBA"]) -> Image.Image:
    """The picture in another mode and a whole number of times smaller, yet no smaller than what is wanted.

    Done in bands: a copy of the whole in another mode may take 0.2 GB, and a see-through one needs two.
    """
    factor = max(1, max(picture.size) // MAX_SIDE)
    if factor == 1:
        return picture.convert(mode)
    width, height = picture.size
    small = Image.new(mode, (-(-width // factor), -(-height // factor)))
    rows = 64 * factor
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(height, top + rows))).convert(mode)
        small.paste(band.reduce(factor), (0, top // factor))
    return small


def _flatten(picture: Image.Image) -> Image.Image:
    """Put a see-through picture on white, or on black when what is to be seen is itself nearly white."""
    alpha = picture.getchannel("A")
    drawn = ImageStat.Stat(picture.convert("L"), alpha)
    light = bool(drawn.count[0]) and drawn.mean[0] > 200
    ground = Image.new("RGB", picture.size, "black" if light else "white")
    ground.paste(picture, mask=alpha)
    return ground
