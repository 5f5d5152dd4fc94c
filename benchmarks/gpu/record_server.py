"""Record what a vLLM-Omni server really sends, as test data for clients: event streams, errors, plain pages.

    python record_server.py --port 8091 --model omni --out recorded

Writes OUT/streams/NAME.sse.gz (the bytes of the body as received), OUT/streams.json (request, status, headers and
the arrival time of every line), OUT/errors.json (request, status, headers, body), and the answers of the plain pages.
All answers are short: caps are sent with every request.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import http.client
import io
import json
import math
import struct
import time
import wave
import zlib
from pathlib import Path
from typing import Any

from omni_http import Json, Server, chat_body, post_lines

QUESTION = "Say hello in one short sentence."
PAGES = {
    "models.json": "/v1/models",
    "health.json": "/health",
    "version.json": "/version",
    "voices.json": "/v1/audio/voices",
    "load.json": "/load",
    "metrics.txt": "/metrics",
}
KEPT_HEADERS = ("content-type", "transfer-encoding", "content-length", "server", "x-request-id", "allow")


def png(width: int, height: int, shade: int) -> bytes:
    """A small picture of colour ramps."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (x * 255 // width, y * 255 // height, shade))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tone(seconds: float, hertz: float) -> bytes:
    """A WAV file of one tone, 16 kHz mono."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        count = int(seconds * 16_000)
        file.writeframes(
            struct.pack(f"<{count}h", *(int(8000 * math.sin(2 * math.pi * hertz * i / 16_000)) for i in range(count)))
        )
    return out.getvalue()


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_part(shade: int) -> Json:
    return {"type": "image_url", "image_url": {"url": data_url("image/png", png(448, 448, shade))}}


def sound_part(hertz: float) -> Json:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(tone(2.0, hertz)).decode(), "format": "wav"},
    }


def text_part(text: str) -> Json:
    return {"type": "text", "text": text}


def stream_requests(server: Server) -> dict[str, Json]:
    """The streams to record, by name, in the order in which they are sent."""
    both, text = ["text", "audio"], ["text"]

    def body(content: str | list[Json], modalities: list[str], words: int, frames: int, **extra: Any) -> Json:
        return chat_body(server, content, modalities=modalities, text_tokens=words, codec_frames=frames, **extra)

    plain = body(QUESTION, text, 16, 0)
    del plain["sampling_params_list"], plain["stream_options"]
    own_defaults = body(QUESTION, both, 12, 8)
    del own_defaults["audio"], own_defaults["stream_options"]
    picture = [picture_part(90), text_part("What is in the picture?")]
    second_picture = [picture_part(200), text_part("And in this one?")]
    sound = [sound_part(440.0), text_part("What do you hear?")]
    second_sound = [sound_part(660.0), text_part("And now?")]
    return {
        "text_audio_pcm": body(QUESTION, both, 12, 31),
        "text_audio_wav": body(QUESTION, both, 12, 14, audio_format="wav"),
        "text_audio_no_format": own_defaults,
        "text_only": body(QUESTION, text, 24, 0),
        "text_only_defaults": plain | {"max_tokens": 16},
        "text_only_continuous_usage": body(QUESTION, text, 6, 0)
        | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        "audio_only_pcm": body(QUESTION, ["audio"], 12, 8),
        "text_audio_stage_metrics": body(QUESTION, both, 12, 8, return_stage_metrics=True),
        "text_audio_voice_ethan": body(QUESTION, both, 6, 6, voice="ethan"),
        "text_audio_more_text_than_sound": body(QUESTION, both, 40, 6),
        "picture_text": body(picture, text, 12, 0),
        "picture_text_second": body(second_picture, text, 12, 0),
        "sound_text": body(sound, text, 12, 0),
        "sound_text_second": body(second_sound, text, 12, 0),
        "picture_sound_text_audio": body([*picture[:1], *sound], both, 12, 8),
    }


def whole_requests(server: Server) -> dict[str, Json]:
    """Requests without streaming: one JSON answer each."""
    both = chat_body(server, QUESTION, modalities=["text", "audio"], text_tokens=12, codec_frames=8, audio_format="wav")
    text = chat_body(server, QUESTION, modalities=["text"], text_tokens=12, codec_frames=0)
    metrics = both | {"return_stage_metrics": True}
    bodies = {"whole_text_audio_wav": both, "whole_text": text, "whole_text_audio_stage_metrics": metrics}
    return {
        name: {k: v for k, v in body.items() if k != "stream_options"} | {"stream": False}
        for name, body in bodies.items()
    }


def error_requests(server: Server) -> dict[str, tuple[str, str, str | Json | None]]:
    """Requests that must fail: name -> (method, path, body)."""
    path = "/v1/chat/completions"
    good = chat_body(server, QUESTION, modalities=["text"], text_tokens=4, codec_frames=4)
    plain = {name: value for name, value in good.items() if name != "sampling_params_list"}
    spoken = chat_body(server, QUESTION, modalities=["text", "audio"], text_tokens=4, codec_frames=4)

    def asking(parts: list[Json] | str) -> list[Json]:
        return [{"role": "user", "content": parts}]

    bad_picture = {"type": "image_url", "image_url": {"url": data_url("image/png", b"not a picture")}}
    bad_sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    short_sound = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(tone(0.01, 440.0)).decode(), "format": "wav"},
    }
    local_file = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}
    far_picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    return {
        "bad_modality": ("POST", path, good | {"modalities": ["video"]}),
        "modalities_not_a_list": ("POST", path, good | {"modalities": "text"}),
        "bad_voice": ("POST", path, spoken | {"voice": "nobody"}),
        "bad_voice_not_streamed": ("POST", path, spoken | {"voice": "nobody", "stream": False, "stream_options": None}),
        "bad_audio_format": ("POST", path, spoken | {"audio": {"format": "midi"}}),
        "wrong_model": ("POST", path, good | {"model": "some-other-model"}),
        "bad_json": ("POST", path, '{"model": "x", "messages": ['),
        "empty_body": ("POST", path, ""),
        "no_messages": ("POST", path, {k: v for k, v in good.items() if k != "messages"}),
        "empty_messages": ("POST", path, good | {"messages": []}),
        "bad_role": ("POST", path, good | {"messages": [{"role": "wizard", "content": "hi"}]}),
        "bad_part_type": ("POST", path, good | {"messages": asking([{"type": "smell", "smell": "roses"}])}),
        "negative_max_tokens": ("POST", path, plain | {"max_tokens": -1}),
        "bad_temperature": ("POST", path, plain | {"temperature": -3.0}),
        "null_stage_sampling": ("POST", path, good | {"sampling_params_list": None}),
        "bad_stage_sampling": ("POST", path, good | {"sampling_params_list": [{"no_such_setting": 1}]}),
        "prompt_too_long": ("POST", path, good | {"messages": asking("word " * 20_000)}),
        "max_tokens_over_context": ("POST", path, plain | {"max_tokens": 100_000}),
        "broken_picture": ("POST", path, good | {"messages": asking([bad_picture, text_part("?")])}),
        "broken_sound": ("POST", path, good | {"messages": asking([bad_sound, text_part("?")])}),
        "too_short_sound": ("POST", path, good | {"messages": asking([short_sound, text_part("?")])}),
        "local_file_not_allowed": ("POST", path, good | {"messages": asking([local_file, text_part("?")])}),
        "unreachable_picture": ("POST", path, good | {"messages": asking([far_picture, text_part("?")])}),
        "logprobs_not_bool": ("POST", path, good | {"logprobs": 3}),
        "completions": ("POST", "/v1/completions", {"model": server.model, "prompt": "hi", "max_tokens": 4}),
        "speech": ("POST", "/v1/audio/speech", {"model": server.model, "input": "hi", "voice": "ethan"}),
        "transcriptions": ("POST", "/v1/audio/transcriptions", {}),
        "unknown_path": ("GET", "/v1/nothing", None),
        "wrong_method": ("GET", path, None),
    }


def kept(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() in KEPT_HEADERS}


def send(server: Server, method: str, path: str, body: str | Json | None, timeout: float) -> Json:
    """One request, whole answer: status, headers, body (parsed where it is JSON), seconds."""
    connection = server.connect(timeout)
    payload = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    started = time.perf_counter()
    try:
        connection.request(method, path, payload, {"Content-Type": "application/json"} if payload is not None else {})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        answer: Json = {"status": response.status, "headers": kept(dict(response.getheaders()))}
    except (OSError, http.client.HTTPException) as error:
        return {"failed": f"{type(error).__name__}: {error}", "seconds": round(time.perf_counter() - started, 3)}
    finally:
        connection.close()
    answer["seconds"] = round(time.perf_counter() - started, 3)
    try:
        answer["body"] = json.loads(text)
    except ValueError:
        answer["body_text"] = text
    return answer


def shortened(value: Any, limit: int = 400) -> Any:
    """The same JSON with long strings cut, so that requests with media stay readable."""
    if isinstance(value, str):
        return value if len(value) <= limit else f"{value[:60]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: shortened(entry, limit) for key, entry in value.items()}
    if isinstance(value, list):
        return [shortened(entry, limit) for entry in value]
    return value


def record_stream(server: Server, body: Json, timeout: float) -> tuple[Json, bytes]:
    """Send one streamed request; returns its description and the raw bytes of the answer."""
    lines: list[bytes] = []
    record: Json = {"request": shortened(body), "lines": []}
    try:
        for at, response, line in post_lines(server, body, timeout):
            if not lines:
                record |= {"status": response.status, "headers": kept(dict(response.getheaders()))}
            lines.append(line)
            record["lines"].append([round(at, 4), len(line)])
    except (OSError, http.client.HTTPException) as error:
        record["failed"] = f"{type(error).__name__}: {error}"
    return record, b"".join(lines)


def record_streams(server: Server, out: Path, timeout: float) -> None:
    (out / "streams").mkdir(exist_ok=True)
    streams: dict[str, Json] = {}
    for name, body in stream_requests(server).items():
        streams[name], raw = record_stream(server, body, timeout)
        (out / "streams" / f"{name}.sse.gz").write_bytes(gzip.compress(raw, 9, mtime=0))
        times = streams[name]["lines"]
        print(
            f"{name:34s} status {streams[name].get('status')} {len(times):4d} lines {len(raw):7d} bytes "
            f"{times[-1][0] if times else 0:.3f} s {streams[name].get('failed', '')}",
            flush=True,
        )
        (out / "streams.json").write_text(json.dumps(streams, indent=1))


def record_whole_answers(server: Server, out: Path, timeout: float) -> None:
    whole: dict[str, Json] = {}
    for name, body in whole_requests(server).items():
        whole[name] = {"request": body} | send(server, "POST", "/v1/chat/completions", body, timeout)
        print(f"{name:34s} {whole[name].get('status')} {whole[name].get('seconds')} s", flush=True)
        (out / "whole_answers.json").write_text(json.dumps(whole, indent=1))


def record_pages(server: Server, out: Path, timeout: float) -> None:
    for name, path in PAGES.items():
        status, _, page = server.get(path, timeout)
        print(f"{path:34s} {status} {len(page)} bytes", flush=True)
        (out / name).write_bytes(page)


def record_errors(server: Server, out: Path, timeout: float) -> None:
    errors: dict[str, Json] = {}
    for name, (method, path, body) in error_requests(server).items():
        answer = shortened(send(server, method, path, body, timeout), 4000)
        errors[name] = {"method": method, "path": path, "request": shortened(body)} | answer
        print(
            f"{name:34s} {answer.get('status', answer.get('failed'))} {str(answer.get('body', ''))[:150]}", flush=True
        )
        (out / "errors.json").write_text(json.dumps(errors, indent=1))
    status, _, page = server.get("/health")
    print("health after the errors:", status, page.decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one answer")
    parser.add_argument("--what", default="streams,whole,pages,errors", help="what to record, separated by commas")
    options = parser.parse_args()
    server = Server(options.host, options.port, options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    recorders = {
        "streams": record_streams,
        "whole": record_whole_answers,
        "pages": record_pages,
        "errors": record_errors,
    }
    for what in options.what.split(","):
        recorders[what](server, options.out, options.timeout)


if __name__ == "__main__":
    main()
