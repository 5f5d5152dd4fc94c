"""Makes a folder of files that nobody should be able to hurt us with, and says what must become of each.

`python tests/media/hostile.py OUT` writes them; `CASES` is the list with the expected outcomes.
"""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.media import makers

Make = Callable[[], bytes]


@dataclass(frozen=True)
class OnDisk:
    """Something other than bytes: a link, a pipe, a folder."""

    place: Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A file and its fate: accepted as `kind`, or rejected with a message that matches `says`."""

    file: str
    make: Make | OnDisk
    kind: str = ""
    says: str = ""
    notes: str | None = ""
    """What the note on an accepted file must match; None for whatever the encoder's luck makes of it."""
    name: str = ""
    """What the visitor calls it, when not `file`."""
    shown: str = ""
    """How its name must be shown, when not as it is."""
    as_root: bool = True
    """Whether the case means anything for root, who may read everything."""

    @property
    def sent_name(self) -> str:
        return self.name or self.file

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        if isinstance(self.make, OnDisk):
            self.make.place(path)
        else:
            path.write_bytes(self.make())
        return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def black_png(width: int, height: int, *more: bytes) -> bytes:
    """A valid one-bit PNG of any size, kilobytes on disk."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(row * 100) for _ in range(height // 100))
    data += squeeze.compress(row * (height % 100)) + squeeze.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def text_bomb() -> bytes:
    return black_png(10, 10, _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)))


def many_frames(count: int) -> bytes:
    one = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\xff\0\0\0\0\xff" + one * count + b";"


def huge_header(kind: str) -> bytes:
    """A small picture whose header promises 60000 x 60000 pixels (16383 x 16383 for WebP, its most)."""
    good = bytearray(makers.picture(makers.field(16, 16), kind))
    if kind == "JPEG":
        at = good.index(b"\xff\xc0")
        good[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    elif kind == "GIF":
        good[6:10] = struct.pack("<HH", 60_000, 60_000)
    elif kind == "BMP":
        good[18:26] = struct.pack("<ii", 60_000, 60_000)
    elif kind == "WEBP":
        at = good.index(b"VP8 ") + 8 + 6
        good[at : at + 4] = struct.pack("<HH", 16_383, 16_383)
    elif kind == "TIFF":
        for tag in (256, 257):
            at = good.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in good else -1
            at = at if at >= 0 else good.index(struct.pack("<HHI", tag, 3, 1))
            good[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 60_000)
    return bytes(good)


def endless_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated ten thousand times."""
    good = makers.picture(makers.field(2000, 1500), "JPEG", progressive=True)
    last = good.rindex(b"\xff\xda")
    return good[:last] + good[last:-2] * 10_000 + b"\xff\xd9"


def cut(good: Make, share: float = 0.45) -> bytes:
    whole = good()
    return whole[: int(len(whole) * share)]


def spoiled(good: Make, share: float = 0.34) -> bytes:
    """The middle overwritten with noise."""
    whole = bytearray(good())
    start, length = int(len(whole) * (1 - share) / 2), int(len(whole) * share)
    whole[start : start + length] = random.Random(1).randbytes(length)
    return bytes(whole)


def lying_wav(size: int = 0xFFFF_FFF0) -> bytes:
    good = bytearray(makers.wav(makers.sine(2)))
    at = good.index(b"data")
    good[4:8] = good[at + 4 : at + 8] = struct.pack("<I", size)
    return bytes(good)


def headerless_flac(hours: float) -> bytes:
    """Hours of silence whose header does not tell how long."""
    good = bytearray(makers.silence_flac(hours))
    good[21] &= 0xF0
    good[22:26] = bytes(4)
    return bytes(good)


def encrypted_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("photo.jpg", b"secret")
    data = bytearray(out.getvalue())
    data[6] |= 1
    return bytes(data)


def protected_clip() -> bytes:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    return makers.clip("mp4", options=key)


def _data(text: str) -> Make:
    return lambda: text.encode()


def _unreadable(path: Path) -> None:
    path.write_bytes(_jpeg())
    path.chmod(0)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


_jpeg = partial(makers.picture, makers.noise(), "JPEG")
_png = partial(makers.picture, makers.noise(), "PNG")
_wav = partial(makers.wav, makers.sine(3))
_DAMAGED = r"damaged|cut off"
_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_PICTURES: dict[str, Make] = {kind.lower(): partial(makers.picture, makers.noise(), kind) for kind in _KINDS}
_OPUS = partial(makers.tone, "opus", 3.0)
_SOUNDS: dict[str, Make] = {"ogg": partial(makers.vorbis, 3.0)} | {
    suffix: partial(makers.tone, suffix, 3.0) for suffix in ("mp3", "m4a", "flac")
}
_CLIPS: dict[str, Make] = {suffix: partial(makers.clip, suffix) for suffix in ("mp4", "mov", "webm", "mkv")}
_PLAYLIST = "#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"
_SVG = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_BIG = r"megapixels"

_STREAMS = _SOUNDS | _CLIPS

CASES: tuple[Case, ...] = (
    Case("empty.jpg", bytes, says=r"is empty"),
    *(Case(f"cut.{kind}", partial(cut, make), says=_DAMAGED) for kind, make in (_PICTURES | _STREAMS).items()),
    # what is left of these two plays by itself, and nothing in them says how long they were
    Case("cut.wav", partial(cut, _wav), kind="audio"),
    Case("cut.opus", partial(cut, _OPUS), kind="audio"),
    *(Case(f"stub.{kind}", partial(cut, make, 0.02), says=_DAMAGED) for kind, make in (_PICTURES | _STREAMS).items()),
    Case("stub.wav", partial(cut, _wav, 0.02), says=r"too short"),
    Case("stub.opus", partial(cut, _OPUS, 0.02), says=_DAMAGED),
    # a third in the middle is noise: formats without checksums or with small pieces survive that
    *(Case(f"spoiled.{kind}", partial(spoiled, _PICTURES[kind]), says=_DAMAGED) for kind in ("jpeg", "png", "gif")),
    *(Case(f"spoiled.{kind}", partial(spoiled, _PICTURES[kind]), kind="image") for kind in ("webp", "bmp", "tiff")),
    Case("spoiled.wav", partial(spoiled, _wav), kind="audio"),
    Case("spoiled.mp3", partial(spoiled, _STREAMS["mp3"]), kind="audio", notes=r"Only 1\.\d of its 3\.0 seconds"),
    Case("spoiled.flac", partial(spoiled, _STREAMS["flac"]), kind="audio", notes=r"Only 1\.\d of its 3\.0 seconds"),
    Case("spoiled.m4a", partial(spoiled, _STREAMS["m4a"]), kind="audio", notes=r"Only 1\.\d of its 3\.0 seconds"),
    Case("spoiled.ogg", partial(spoiled, _STREAMS["ogg"]), says=_DAMAGED),
    Case("spoiled.opus", partial(spoiled, _OPUS), kind="audio"),  # its length was told by the page that is lost
    *(Case(f"spoiled.{kind}", partial(spoiled, make), kind="video", notes=None) for kind, make in _CLIPS.items()),
    # not what the name says
    Case("picture.wav", _png, kind="image"),
    Case("song.jpg", _SOUNDS["mp3"], kind="audio"),
    Case("clip.txt", _CLIPS["webm"], kind="video"),
    Case("text.png", _data("just words\n" * 9), says=r"named like a picture but holds plain text.*Send a picture"),
    Case("page.wav", _data("<!DOCTYPE html><script>alert(1)</script>"), says=r"like a sound but holds a web page"),
    Case("zip.jpg", encrypted_zip, says=r"a ZIP archive"),
    Case("pdf.jpg", _data("%PDF-1.7\n/Encrypt 5 0 R"), says=r"a PDF document"),
    Case("drawing.svg", _data(_SVG), says=r"an SVG drawing"),
    Case("script.eps", _data("%!PS-Adobe-3.0 EPSF-3.0\n"), says=r"PostScript"),
    Case("random.bin", lambda: random.Random(2).randbytes(50_000), says=r"a kind we do not know"),
    Case("zeros.mp4", lambda: bytes(50_000), says=r"named like a clip but holds data of a kind we do not know"),
    # would make a careless reader open other files
    Case("list.mp4", _data(_PLAYLIST), says=r"a playlist of addresses"),
    Case("list.m3u8", _data(_PLAYLIST), says=r"a playlist of addresses"),
    Case("concat.mkv", _data("ffconcat version 1.0\nfile /etc/passwd\n"), says=r"a list of other files"),
    Case("stream.sdp", _data("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"), says=r"a streaming description"),
    Case("stream.mpd", _data("<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>"), says=r"playlist"),
    # bombs
    Case("hundred-megapixels.png", lambda: black_png(10_000, 10_000), says=r"10000 x 10000 = 100 megapixels.*50 mega"),
    Case("bomb.png", lambda: black_png(50_000, 50_000), says=_BIG),
    Case("text-bomb.png", text_bomb, says=_DAMAGED),
    *(Case(f"huge.{kind.lower()}", partial(huge_header, kind), says=_BIG) for kind in ("JPEG", "GIF", "BMP", "TIFF")),
    Case("huge.webp", partial(huge_header, "WEBP"), says=f"{_BIG}|{_DAMAGED}"),
    Case("endless-scans.jpg", endless_scans, says=r"layers"),
    Case("frames.gif", lambda: many_frames(10_000), kind="image", notes=r"first picture"),
    Case("hours.flac", lambda: makers.silence_flac(3), says=r"lasts 3 h 00 min; sounds may last 10 minutes"),
    Case("hours-untold.flac", lambda: headerless_flac(3), says=r"lasts more than 10 minutes"),
    Case("eleven-minutes.opus", lambda: makers.tone("opus", 660), says=r"lasts more than 10 minutes"),
    Case("eleven-minutes.webm", lambda: makers.tone("webm", 660, {"live": "1"}), says=r"lasts more than 10 minutes"),
    Case("long.mp4", lambda: makers.clip(seconds=310, size=(16, 16), sound=False), says=r"lasts more than 5 minutes"),
    # headers that lie, halves that are missing
    Case("lying.wav", lying_wav, kind="audio"),
    Case("nothing.wav", lambda: makers.wav(makers.sine(0)), says=r"too short|damaged"),
    Case("blink.wav", lambda: makers.wav(makers.sine(0.05)), says=r"too short"),
    Case("nan.wav", lambda: makers.wav(makers.sine(1) * float("nan"), subtype="FLOAT"), kind="audio"),
    Case("one-hertz.wav", lambda: makers.wav(makers.sine(1), rate=1), says=r"1 samples a second"),
    Case("silent-clip.mp4", lambda: makers.clip(sound=False), kind="video"),
    Case("no-picture.webm", lambda: makers.tone("webm"), kind="audio"),
    Case("recorder.webm", lambda: makers.tone("webm", options={"live": "1"}), kind="audio"),
    Case("protected.mp4", protected_clip, says=r"protected against copying"),
    # two things at once
    Case("zip-inside.jpg", lambda: _jpeg() + encrypted_zip(), kind="image"),
    Case("script.gif", _data("GIF89a/*" + " " * 99 + "*/=1;alert(1)"), says=_DAMAGED),
    # names
    Case("climb.png", _png, kind="image", name="../../etc/passwd", shown="passwd"),
    Case("markup.png", _png, kind="image", name="<script>alert(1)</script>.png", shown="script>.png"),
    Case("long.png", _png, kind="image", name="a" * 5000 + ".png", shown="a" * 75 + "….png"),
    Case("zero.png", _png, kind="image", name="a\0b\n\x1b[31m.png", shown="ab [31m.png"),
    Case("bidi.png", _png, kind="image", name="gpj\u202egnp.exe", shown="gpjgnp.exe"),
    # not files
    Case("link.png", OnDisk(lambda path: path.symlink_to("/etc/hostname")), says=r"cannot be opened as a plain file"),
    Case("zero-link.png", OnDisk(lambda path: path.symlink_to("/dev/zero")), says=r"cannot be opened as a plain file"),
    Case("folder.png", OnDisk(Path.mkdir), says=r"is a folder or a device"),
    Case("pipe.png", OnDisk(os.mkfifo), says=r"is a folder or a device"),
    Case("gone.png", OnDisk(lambda path: None), says=r"not there any more"),
    Case("unreadable.png", OnDisk(_unreadable), says=r"cannot be opened", as_root=False),
    Case("sparse.wav", OnDisk(_sparse), says=r"MB; files may have at most 100 MB"),
)


def build(folder: Path) -> list[tuple[Case, Path]]:
    """Write every case into its own folder under `folder`, so that no two names meet."""
    written = []
    for number, case in enumerate(CASES):
        home = folder / f"{number:03d}"
        home.mkdir(parents=True)
        written.append((case, case.write(home)))
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/media/hostile.py OUT")
    for case, path in build(Path(sys.argv[1])):
        print(f"{path}  ->  {case.kind or 'rejected: ' + case.says}")
