"""What a file really is, told from its first bytes alone: never from its name or from what the sender calls it."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 4096
WAY_OUT = (
    "Send a picture (JPEG, PNG, WebP, GIF, BMP, TIFF), a sound (WAV, MP3, M4A, FLAC, Ogg, Opus, AAC, AMR, AIFF) "
    "or a clip (MP4, WebM, MOV, MKV)."
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format we read. `reader` is the one Pillow format or FFmpeg demuxer that may open it: nothing is guessed."""

    family: Literal["picture", "stream"]
    reader: str
    suffix: str
    mime: str
    words: str
    clip: bool = False
    """Whether the container may be kept as a clip (what a browser can play)."""


_JPEG = Format("picture", "JPEG", ".jpg", "image/jpeg", "a JPEG picture")
_PNG = Format("picture", "PNG", ".png", "image/png", "a PNG picture")
_WEBP = Format("picture", "WEBP", ".webp", "image/webp", "a WebP picture")
_GIF = Format("picture", "GIF", ".gif", "image/gif", "a GIF picture")
_BMP = Format("picture", "BMP", ".bmp", "image/bmp", "a BMP picture")
_TIFF = Format("picture", "TIFF", ".tiff", "image/tiff", "a TIFF picture")
_WAV = Format("stream", "wav", ".wav", "audio/wav", "a WAV sound")
_FLAC = Format("stream", "flac", ".flac", "audio/flac", "a FLAC sound")
_OGG = Format("stream", "ogg", ".ogg", "audio/ogg", "an Ogg sound")
_MP3 = Format("stream", "mp3", ".mp3", "audio/mpeg", "an MP3 sound")
_AAC = Format("stream", "aac", ".aac", "audio/aac", "an AAC sound")
_AMR = Format("stream", "amr", ".amr", "audio/amr", "an AMR sound")
_AIFF = Format("stream", "aiff", ".aiff", "audio/aiff", "an AIFF sound")
_MP4 = Format("stream", "mov", ".mp4", "video/mp4", "an MP4 file", clip=True)
_MOV = Format("stream", "mov", ".mov", "video/quicktime", "a QuickTime file", clip=True)
_WEBM = Format("stream", "matroska", ".webm", "video/webm", "a WebM file", clip=True)
_MKV = Format("stream", "matroska", ".mkv", "video/x-matroska", "a Matroska file", clip=True)

_STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", _JPEG),
    (b"\x89PNG\r\n\x1a\n", _PNG),
    (b"GIF87a", _GIF),
    (b"GIF89a", _GIF),
    (b"II*\0", _TIFF),
    (b"MM\0*", _TIFF),
    (b"fLaC", _FLAC),
    (b"OggS", _OGG),
    (b"ID3", _MP3),
    (b"#!AMR", _AMR),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "a PostScript file"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"FLV", "a Flash video"),
    (b"0&\xb2u", "a Windows Media file"),
)
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"#extm3u", "a playlist of addresses"),
    (b"ffconcat", "a list of other files"),
    (b"v=0", "a streaming description"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)


def sniff(head: bytes) -> Format | None:
    """The format of a file that begins with `head` (HEAD_BYTES or less), or None when it is none we read."""
    for start, found in _STARTS:
        if head.startswith(start):
            return found
    if head[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": _WAV, b"WEBP": _WEBP}.get(head[8:12])
    if head[:4] == b"FORM":
        return _AIFF if head[8:12] in (b"AIFF", b"AIFC") else None
    if head[:4] == b"\x1aE\xdf\xa3":
        return _WEBM if b"webm" in head[:64] else _MKV
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return _BMP
    return _sniff_mp4(head) or _sniff_mpeg_audio(head)


def _sniff_mp4(head: bytes) -> Format | None:
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free"):
        return _MOV
    if head[4:8] != b"ftyp" or _is_heif(head):
        return None
    return _MOV if head[8:12] == b"qt  " else _MP4


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


def _sniff_mpeg_audio(head: bytes) -> Format | None:
    """MPEG sounds without a tag start with eleven set bits; the layer bits tell ADTS AAC (00) from MP3 (01) and MP2."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    layer = head[1] >> 1 & 3
    if layer == 0:
        return _AAC if head[1] & 0xF0 == 0xF0 else None
    sane = head[1] >> 3 & 3 != 1 and head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3
    return _MP3 if sane and layer != 3 else None


def describe(head: bytes) -> str:
    """What a file that we do not read seems to be, in words: `a PDF document`."""
    for start, words in _OTHERS:
        if head.startswith(start):
            return words
    if _is_heif(head):
        return "a HEIC or AVIF picture (save it as JPEG or PNG)"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "an AVI clip (save it as MP4)"
    return _describe_text(head) or "data of a kind we do not know"


def _describe_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, words in _TEXTS:
        if text.startswith(start):
            return words
    if b"<svg" in text:
        return "an SVG drawing (save it as PNG)"
    if b"<mpd" in text:
        return "a playlist of addresses"
    # the head may end inside a character, which `ignore` forgives; a zero byte never occurs in text
    is_text = b"\0" not in head and len(head.decode("utf-8", "ignore").encode()) >= len(head) - 3
    return "plain text (paste it into the message)" if is_text else ""


def claim(name: str) -> str:
    """What the suffix of a name promises, in words, or an empty string when it promises no media."""
    family = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    return {"image": "a picture", "audio": "a sound", "video": "a clip"}.get(family, "")
