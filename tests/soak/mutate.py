"""Good inputs made bad: real media with broken bytes, request bodies with broken values. The same seed, the same."""

from __future__ import annotations

import base64
import copy
import functools
import json
import random
from typing import Any

from tests.media import makers

ODD: tuple[Any, ...] = (
    None, True, "", " ", "\0", "\ud800", "a" * 30_000, "data:", "data:image/png;base64,", "http://127.0.0.1:9/x",
    "file:///etc/passwd", -1, 0, 10**400, 1e308, float("nan"), float("-inf"), [], {}, [[]], {"": None}, [None] * 50,
    "../" * 40, "\u202e", "audio", "tool",
)  # fmt: skip
SIZES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\1")
KEY_OF = {"image": "image_url", "audio": "audio_url", "video": "video_url"}


@functools.cache
def media() -> tuple[tuple[str, bytes], ...]:
    """(kind, content) of small good files of every format that differs in how it is read."""
    pictures = [makers.picture(makers.field(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    sounds = [makers.wav(makers.sine(0.5)), makers.vorbis(0.5)]
    sounds += [makers.tone(suffix, 0.5) for suffix in ("mp3", "m4a", "flac", "opus", "webm", "aiff")]
    clips = [makers.clip(suffix, 0.4) for suffix in ("mp4", "mov", "webm", "mkv")]
    named = (("image", pictures), ("audio", sounds), ("video", clips))
    return tuple((kind, content) for kind, contents in named for content in contents)


def spoiled_file(dice: random.Random) -> tuple[str, bytes]:
    kind, content = dice.choice(media())
    return kind, spoiled_bytes(dice, content)


def spoiled_bytes(dice: random.Random, content: bytes) -> bytes:
    """Up to four blows, half of them near the front, where headers are."""
    out = bytearray(content)
    for _ in range(dice.randrange(5)):
        if not out:
            break
        at = dice.randrange(min(len(out), 256)) if dice.random() < 0.5 else dice.randrange(len(out))
        end = at + dice.choice((1, 4, 32, 512))
        match dice.randrange(6):
            case 0:
                out[at] ^= 1 << dice.randrange(8)
            case 1:
                out[at : at + 4] = dice.choice(SIZES)
            case 2:
                del out[at:end]
            case 3:
                out[at:at] = out[at:end] * dice.choice((1, 2, 100))
            case 4:
                out[at:end] = dice.randbytes(end - at)
            case _:
                out[at:] = dice.choice(media())[1][at:] if dice.random() < 0.3 else b""
    return bytes(out)


def question(kind: str, content: bytes, stream: bool) -> dict[str, Any]:
    """A whole and valid request with one file."""
    url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    parts = [{"type": "text", "text": "what is it"}, {"type": KEY_OF[kind], KEY_OF[kind]: {"url": url}}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    more = {"modalities": ["text", "audio"], "temperature": 0.5, "max_tokens": 9, "audio": {"voice": "low"}}
    return {"model": "default", "messages": messages, "stream": stream, **more}


def spoiled_body(dice: random.Random, body: dict[str, Any]) -> bytes:
    """Some values replaced, dropped or doubled; sometimes the JSON text itself is broken."""
    out = copy.deepcopy(body)
    for _ in range(dice.randrange(1, 4)):
        _spoil(dice, out)
    raw = json.dumps(out).encode()
    return spoiled_bytes(dice, raw) if dice.random() < 0.2 else raw


def _spoil(dice: random.Random, node: Any) -> None:
    while isinstance(node, dict | list) and node:
        key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or dice.random() < 0.3:
            match dice.randrange(4):
                case 0:
                    node[key] = copy.deepcopy(dice.choice(ODD))  # or later blows would fall on the table
                case 1:
                    node[key] = [node[key]] * 3
                case 2:
                    node[key] = {"value": node[key]}
                case _:
                    del node[key]
            return
        node = node[key]
