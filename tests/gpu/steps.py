"""What a running server is put through, one step a process: each prints a short table and writes its facts as JSON.

    python -m tests.gpu.steps users --endpoint http://127.0.0.1:8091 --out users.json

A step that did not hold exits with 1. The endpoint may be anything that speaks vllm-omni's dialect, this app's own API
too, so every step can be tried where there is no GPU. Texts and speech are capped: random weights never stop.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from omni_app.conversation import Message, Part
from omni_app.media import Limits, ingest
from omni_app.media.audio import write_wav
from omni_app.server.state import ServerFolder
from omni_app.settings import Settings
from tests.gpu.order import HEAD, ROOT, Json, Order, answer, engine_of, row

from load_users import one_round, summary  # isort: skip
from omni_http import Server, chat_body, pieces_of, post_lines, read_event  # isort: skip
from stop_answer import stop_after  # isort: skip

TURNS = 10
FREE_WITHIN_S = 1.0
GROWTH_GIB = 0.5
APP_READY_S = 120.0


# --- the steps: each gives its facts, of which `ok` says whether it held


async def speak(order: Order) -> Json:
    """One spoken answer through our engine; the sound is kept."""
    async with engine_of(order.settings()) as engine:
        said = await answer(engine, [Message.of("user", "Say hello, and who you are.")], order.options(True))
        status = engine.status()
    write_wav(order.sound, said.pcm, said.rate)
    print(HEAD, row("spoken answer", said), sep="\n")
    facts = {"model": status.model, "voices": status.voices, "text": said.text[:500], "figures": said.figures}
    return {"ok": bool(said.text and said.pcm), **facts, "memory_gib": order.memory()}


async def media(order: Order) -> Json:
    """A picture, a sound, a clip, a clip with its own sound: each twice, the last of all spoken; then by file://."""
    lent = ServerFolder(order.data_dir).read().local_media
    with tempfile.TemporaryDirectory(dir=lent or None) as folder:
        found = {name: await _part(name, Path(folder)) for name in ("sign.png", "question.wav", "clip.mp4")}
        picture, sound, clip = found.values()
        cases = {
            "picture": (picture,), "sound": (sound,), "clip, silent": (replace(clip, has_sound=False),),
            "clip with its sound": (clip,), "picture and sound": (picture, sound),
        }  # fmt: skip
        print(HEAD)
        told = await _shown(order, order.settings(), cases)
        if lent:
            told |= await _shown(order, order.settings(local_media=Path(lent)), {"clip by file://": (clip,)})
    return {"ok": clip.has_sound and all(said["text"] for said in told.values()), "by_file": bool(lent), "cases": told}


async def _part(name: str, folder: Path) -> Part:
    return await ingest(ROOT / "assets" / name, name=name, into=folder, limits=Limits.of(Settings()))


async def _shown(order: Order, settings: Settings, cases: dict[str, tuple[Part, ...]]) -> dict[str, Json]:
    told: dict[str, Json] = {}
    async with engine_of(settings) as engine:
        for name, parts in cases.items():
            for time_of, speech in (("first", False), ("second", name.startswith("clip") or len(parts) > 1)):
                said = await answer(engine, [Message.of("user", "What is this?", *parts)], order.options(speech))
                print(row(f"{name}, {time_of}", said), flush=True)
                told[f"{name}, {time_of}"] = {"text": said.text[:200], **said.figures}
    return told


async def turns(order: Order) -> Json:
    """Ten turns of history."""
    history, told = list[Message](), list[Json]()
    print(HEAD)
    async with engine_of(order.settings()) as engine:
        for turn in range(TURNS):
            history.append(Message.of("user", f"This is question {turn + 1}. What did I ask before?"))
            said = await answer(engine, history, order.options(speech=True))
            history.append(Message.of("assistant", said.text))
            told.append({"prompt_tokens": said.prompt_tokens, **said.figures})
            print(row(f"turn {turn + 1}, {said.prompt_tokens} tokens of prompt", said), flush=True)
    return {"ok": len(told) == TURNS and all(one["speech_s"] for one in told), "turns": told}


async def voices(order: Order) -> Json:
    """Every voice speaks, and no two sound the same."""
    told: dict[str, Json] = {}
    async with engine_of(order.settings()) as engine:
        print(HEAD)
        for voice in engine.status().voices:
            said = await answer(engine, [Message.of("user", "Say hello.")], order.options(True, voice))
            told[voice] = {"sha256": hashlib.sha256(said.pcm).hexdigest(), **said.figures}
            print(row(voice, said), flush=True)
    different = len({one["sha256"] for one in told.values()}) == len(told)
    return {"ok": bool(told) and all(one["speech_s"] for one in told.values()), "all_different": different} | told


async def page(order: Order) -> Json:
    """The app in front of the server: its tool `ask`, and what its API adds to a direct answer."""
    return await asyncio.to_thread(_page, order)


def _page(order: Order) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        url, environ = f"http://127.0.0.1:{port}", {**os.environ, "OMNI_ENDPOINT": order.endpoint}
        command = [sys.executable, "-m", "omni_app", "run", f"--port={port}", f"--data-dir={folder}"]
        app, began = subprocess.Popen(command, cwd=ROOT, env=environ), time.monotonic()
        try:
            if not until_healthy(url, app):
                raise SystemExit("the app did not become ready")
            started = time.monotonic() - began
            asked = _ask_the_tool(url)
            added = _compare(order, replace(order, endpoint=url))
        finally:
            app.terminate()
            app.wait(30)
    print(f"app ready {started:.1f} s; ask: {asked['seconds']:.1f} s, {asked['sound_bytes']} bytes of WAV")
    print("the app adds to first text {first_text_ms} ms, to first sound {first_sound_ms} ms".format(**added))
    return {"ok": bool(asked["text"] and asked["sound_bytes"]), "app_ready_s": started, "ask": asked, "added": added}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until_healthy(url: str, app: subprocess.Popen[bytes], limit_s: float = APP_READY_S) -> bool:
    """Whether the app became ready before it ended, in so many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s and app.poll() is None:
        with suppress(httpx.TransportError):  # as long as it does not listen
            if httpx.get(f"{url}/health", trust_env=False, timeout=30).status_code == 200:
                return True
        time.sleep(0.2)
    return False


def _ask_the_tool(url: str) -> Json:
    from gradio_client import Client

    began = time.monotonic()
    text, sound = Client(url, verbose=False).predict("Say hello.", "", True, "", api_name="/ask")
    pcm = base64.b64decode(sound.partition(",")[2]) if sound.startswith("data:") else b""
    return {"seconds": time.monotonic() - began, "text": text[:500], "sound_bytes": len(pcm)}


def _compare(direct: Order, through: Order) -> Json:
    """What the second way adds to the first, in ms: medians of turns about."""
    seen: dict[str, list[tuple[float, float]]] = {"direct": [], "through": []}
    for _ in range(5):
        for name, order in (("direct", direct), ("through", through)):
            body = _body(order)
            seen[name].append(_firsts(order.server(), body))
    medians = {
        name: [statistics.median(kind) * 1000 for kind in zip(*pairs, strict=True)] for name, pairs in seen.items()
    }
    first_text, first_sound = (round(b - a, 1) for a, b in zip(medians["direct"], medians["through"], strict=True))
    return {"first_text_ms": first_text, "first_sound_ms": first_sound, "medians_ms": medians}


def _firsts(server: Server, body: Json) -> tuple[float, float]:
    """Seconds to the first text and the first sound. The rest is not waited for: an app takes no caps on what random
    weights say, which is minutes."""
    first: dict[str, float] = {}
    with closing(post_lines(server, body)) as lines:
        for at, _, line in lines:
            for piece in pieces_of(read_event(line) or {}, at):
                first.setdefault(piece.kind, piece.at)
            if len(first) == 2:
                return first["text"], first["audio"]
    raise SystemExit(f"an answer held no text or no speech, only {sorted(first)}")


def _body(order: Order) -> Json:
    shape: Json = {"text_tokens": order.text_tokens, "codec_frames": order.frames}
    return chat_body(order.server(), "Say hello.", modalities=["text", "audio"], **shape)


async def stop(order: Order) -> Json:
    """An answer that is stopped frees all stages within a second."""
    server = order.server()
    told = [await asyncio.to_thread(stop_after, server, kind, 4.0) for kind in ("text", "audio")]
    for one in told:
        last = max(one["last_work_seen_after_s"].values(), default=0.0)
        gone = one["request_gone_after_s"]
        print(f"stopped at the first {one['stopped_at_first']}: gone after {gone} s, last work {last} s")
    freed = [one["request_gone_after_s"] for one in told]
    return {"ok": all(after is not None and after <= FREE_WITHIN_S for after in freed), "stops": told}


async def users(order: Order) -> Json:
    """So many users who ask at the same moment, spoken; a round before each is not counted."""
    server, told = order.server(), dict[str, Json]()
    print("users  first text ms  first sound ms  RTF  silence ms  failed   (median / slowest)")
    for count in order.users:
        rounds = [await asyncio.to_thread(_round, order, server, count) for _ in range(order.rounds + 1)]
        told[str(count)] = figures = summary([one for answers in rounds[1:] for one in answers])
        cells = [_cell(figures[name], scale) for name, scale in _SHOWN]
        print(f"{count:5d}  {'  '.join(cells)}  {len(figures['failed'])}", flush=True)
    return {"ok": not any(one["failed"] for one in told.values()), "users": told, "memory_gib": order.memory()}


_SHOWN = (("first_text_s", 1000), ("first_sound_s", 1000), ("real_time_factor", 1), ("longest_silence_s", 1000))


def _cell(spread: Json | None, scale: float) -> str:
    return f"{spread['median'] * scale:.3g} / {spread['slowest'] * scale:.3g}" if spread else "-"


def _round(order: Order, server: Server, count: int) -> list[Any]:
    return one_round(server, count, order.text_tokens, order.frames, ["text", "audio"])


async def soak(order: Order) -> Json:
    """Many users for so many seconds: no error, no growth after the first round."""
    server, count, began = order.server(), order.soak_users or max(order.users), time.monotonic()
    answers, minutes = list[Any](), list[Json]()
    while time.monotonic() - began < order.seconds or len(minutes) < 2:
        answers += (latest := await asyncio.to_thread(_round, order, server, count))
        told = {"at_s": round(time.monotonic() - began, 1), "memory_gib": order.memory()}
        minutes.append(told | {"first_sound_s": summary(latest)["first_sound_s"]})
    figures = summary(answers)
    growth = sum(minutes[-1]["memory_gib"].values()) - sum(minutes[0]["memory_gib"].values())
    print(f"{len(answers)} answers of {count} users in {minutes[-1]['at_s']} s, {len(figures['failed'])} failed, "
          f"memory grew by {growth:.2f} GiB")  # fmt: skip
    return {"ok": not figures["failed"] and growth < GROWTH_GIB, "growth_gib": growth, "rounds": minutes, **figures}


STEPS: dict[str, Callable[[Order], Awaitable[Json]]] = {
    step.__name__: step for step in (speak, media, turns, voices, page, stop, users, soak)
}


def numbers(text: str) -> str:
    """The text itself, if it is numbers with commas between."""
    if all(one.isdecimal() and int(one) for one in text.split(",")):
        return text
    raise argparse.ArgumentTypeError(f"{text} is not numbers like 1,4,8")


def parser() -> argparse.ArgumentParser:
    """The options that a session passes on."""
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("--text-tokens", type=int, default=60)
    made.add_argument("--frames", type=int, default=150, help="most codec frames; 12.5 are one second of speech")
    made.add_argument("--users", type=numbers, default="1,4,8,16", help="numbers of users (default 1,4,8,16)")
    made.add_argument("--soak-users", type=int, default=0, help="of soak; default: the largest of --users")
    made.add_argument("--rounds", type=int, default=2, help="counted rounds for each number of users")
    made.add_argument("--seconds", type=float, default=600.0, help="length of soak")
    return made


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[parser()]
    )
    made.add_argument("step", choices=STEPS)
    made.add_argument("--endpoint", required=True)
    made.add_argument(
        "--data-dir", type=Path, default=Path("/nonexistent"), help="of the server, if it was started here"
    )
    made.add_argument("--out", type=Path, required=True)
    given = made.parse_args()
    order = Order(
        given.endpoint.rstrip("/"), given.data_dir, given.text_tokens, given.frames,
        tuple(map(int, given.users.split(","))), given.rounds, given.seconds, given.out.with_suffix(".wav"),
        given.soak_users,
    )  # fmt: skip
    facts = asyncio.run(STEPS[given.step](order))
    given.out.write_text(json.dumps(facts, indent=1))
    raise SystemExit(0 if facts["ok"] else 1)


if __name__ == "__main__":
    main()
