"""SAGE's IRP plugin for Qwen3-Omni: `OmniIRP`. One file, standard library only, loaded by its path; see docs/irp.md.
SAGE puts the file not into `sys.modules`, where dataclasses with `from __future__ import annotations` would look."""

import base64
import collections
import contextlib
import http.client
import importlib.util
import itertools
import json
import logging
import queue
import re
import socket
import tempfile
import threading
import time
import urllib.parse
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Trouble(Exception): ...  # why there is no answer, as a sentence


TAG, RESIDENT = "[OmniIRP: ", "process_resident_memory_bytes"
NO_ANSWER, UNSETTLED, FLOOR = 1.0, 0.5, 0.001  # energies; never 0.0, which SAGE takes as missing
MOST_BYTES, SPEECH_KEPT = 64 * 2**20, 20  # bytes of one answer; WAV files of one plugin, then it writes over the oldest
AIMS = ("objective", "objectives", "constraints", "criteria")  # what the model is told of SAGE's task context
MIMES = {"image": "image/jpeg", "audio": "audio/wav", "video": "video/mp4"}  # servers look into the file itself
REFINE = "Improve your last answer. If it cannot be better, repeat it word for word. Reply with the answer alone."
CONFIG: dict[str, tuple[Any, float]] = {  # key -> default, whose type a value must have, and the least number
    "endpoint": ("http://127.0.0.1:8091", 0), "api_key": ("", 0), "model_name": ("", 0), "system_prompt": ("", 0),
    "refine_prompt": (REFINE, 0), "one_shot": (False, 0), "max_response_tokens": (512, 1), "temperature": (None, 0),
    "timeout_seconds": (120.0, 0.001), "connect_seconds": (5.0, 0.001), "metrics_seconds": (10.0, 0),
    "max_media_mb": (64.0, 0), "speech": (False, 0), "voice": ("", 0), "speech_folder": ("", 0), "extra_body": ({}, 0),
    "trust_weight": (1.0, 0), "max_iterations": (100, 0), "halt_eps": (1e-4, 0), "halt_K": (3, 1),
}  # fmt: skip
CAUGHT = (Trouble, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
FOREIGN = (ImportError, AttributeError, NameError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)


@dataclass
class OwnState:
    x: Any
    step_idx: int = 0
    energy_val: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    timestamp: float = field(default_factory=time.time)


class OwnPlugin:
    """Stands in for SAGE's IRPPlugin where that is not installed, as OwnState for IRPState; the same figures."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.entity_id = config.get("entity_id", f"{type(self).__name__}_{id(self)}")
        self.trust_weight = config.get("trust_weight", 1.0)

    def project(self, state: OwnState) -> OwnState:
        return state

    def halt(self, history: list[OwnState]) -> bool:
        return self.get_halt_reason(history) in ("max_steps", "slope<eps")

    def get_halt_reason(self, history: list[OwnState]) -> str:
        if not history or len(history) >= self.config.get("max_iterations", 100):
            return "max_steps" if history else "no_history"
        steps, eps = self.config.get("halt_K", 3), self.config.get("halt_eps", 1e-4)
        recent = self._energies(history[-(steps + 1) :])
        flat = len(recent) > steps and abs(recent[-1] - recent[0]) / len(recent) < eps
        return "slope<eps" if flat else "unknown"

    def compute_trust_metrics(self, history: list[OwnState]) -> dict[str, float]:
        if len(history) < 2:
            return {"monotonicity_ratio": 0.0, "dE_variance": float("inf"), "convergence_rate": 0.0}
        energies, count = self._energies(history), len(history) - 1
        steps = [after - before for before, after in itertools.pairwise(energies)]
        return {
            "monotonicity_ratio": sum(one < 0 for one in steps) / count, "convergence_rate": -sum(steps) / (count + 1),
            "dE_variance": sum((step - sum(steps) / count) ** 2 for step in steps) / count,
        }  # fmt: skip

    def emit_telemetry(self, state: OwnState, history: list[OwnState]) -> dict[str, Any]:
        energy, earlier, steps = self._energies([state])[0], len(history) > 1, len(history)
        return {
            "entity_id": self.entity_id, "plugin": type(self).__name__.lower().replace("plugin", ""),
            "step_idx": state.step_idx, "E": energy, "dE": energy - self._energies(history)[-2] if earlier else None,
            "steps": steps, "halt_reason": self.get_halt_reason(history) if self.halt(history) else None,
            "trust": self.compute_trust_metrics(history), "LRC_context": self.config.get("LRC_context"),
            "budget": {"ATP_spent": steps * self.config.get("ATP_per_step", 0.1),
                       "time_ms": (state.timestamp - history[0].timestamp) * 1000 if earlier else 0.0,
                       "memory_mb": state.meta.get("memory_mb", 0.0)},
        }  # fmt: skip

    def refine(self: Any, x0: Any, task_ctx: Any = None, max_steps: int | None = None) -> tuple[Any, list[Any]]:
        history = [state := self.init_state(x0, task_ctx or {})]
        state.energy_val = self.energy(state)
        for number in range(max_steps or self.config.get("max_iterations", 100)):
            if self.halt(history):
                break
            state = self.project(self.step(state, noise_schedule=None))
            state.step_idx, state.energy_val, state.timestamp = number + 1, self.energy(state), time.time()
            history.append(state)
        return state, history

    def _energies(self: Any, states: list[OwnState]) -> list[float]:
        return [state.energy_val or self.energy(state) for state in states]


def _base() -> tuple[Any, Any]:
    """SAGE's own classes, importable (sage.irp imports torch, which may fail) or in base.py; else ours."""
    with contextlib.suppress(*FOREIGN):
        found: Any = importlib.import_module("sage.irp.base")
        return found.IRPPlugin, found.IRPState
    here = Path(__file__).absolute()  # not resolved: a link in SAGE's plugin folder counts as lying there
    inside = here.parts[-4:-1] == ("sage", "irp", "plugins")
    with contextlib.suppress(*FOREIGN):
        spec: Any = inside and importlib.util.spec_from_file_location("sage_irp_base", here.parent.parent / "base.py")
        spec.loader.exec_module(found := importlib.util.module_from_spec(spec))
        return found.IRPPlugin, found.IRPState
    return OwnPlugin, OwnState


IRPPlugin, IRPState = _base()


def config_faults(config: dict[str, Any]) -> dict[str, str]:
    """Why each value of ours that does not fit does not; other keys are SAGE's affair."""
    found = {}
    for key, (default, least) in CONFIG.items():
        value = config.get(key, default)
        kind = float if default is None else type(default)
        number, same = kind in (int, float), type(value) is kind or (kind is float and type(value) is int)
        if not (same and (not number or least <= value < float("inf"))) and not (value is default is None):
            found[key] = f'config "{key}" must be {kind.__name__}{f", {least:g} or more" * number}, not {value!r:.60}.'
    if not re.match(r"https?://[^/@\s]+(/[^@\s]*)?$", str(config.get("endpoint", CONFIG["endpoint"][0]))):
        found["endpoint"] = 'config "endpoint" must be http://host:port or https://host:port, without user or password.'
    return found


def _refusal(status: Any, body: bytes) -> Trouble:
    found = re.search(r'"(?:message|detail|error)":\s*"((?:[^"\\]|\\.)*)"', text := body.decode("utf-8", "replace"))
    said = " ".join((found[1].replace('\\"', '"') if found else text).split())[:200]
    what = {401: "refused the api_key", 429: "answers as many as it can", 503: "is not ready"}
    return Trouble(f"The server {what.get(status, 'did not answer')} (HTTP {status}){f': {said}' if said else '.'}")


class Reply:
    """An answer as it comes, in one body or in chunks: text, tool calls, speech (PCM, 16-bit mono at `rate` Hz)."""

    def __init__(self) -> None:
        self.text, self.answer, self.error, self.ended, self.role = "", "", "", "", "assistant"
        self.pcm, self.rate, self.speech = bytearray(), 24_000, ""
        self.tool_calls, self.raw, self.usage = list[Any](), dict[str, Any](), dict[str, Any]()

    def add(self, data: bytes) -> str:
        """The text that is new. Raises Trouble."""
        try:
            self.raw, new = json.loads(data), ""
            if self.raw.get("error"):
                raise _refusal(200, data)
            self.usage = dict(self.raw.get("usage") or self.usage)
            sounds = self.raw.get("modality") == "audio"
            for choice in self.raw["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                content, meta = said.get("content") or "", choice.get("audio_metadata") or {}
                self.pcm += base64.b64decode(content, validate=True) if sounds else b""
                self.rate = min(max(int(meta.get("sample_rate_hz") or self.rate), 1), 384_000)
                self.ended, self.role = choice.get("finish_reason") or self.ended, said.get("role") or self.role
                self.tool_calls += said.get("tool_calls") or []
                new += "" if sounds else content.encode("utf-8", "replace").decode()
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise Trouble("The server sent an answer that is torn, or of a form that is not known here.") from error
        self.text += new
        return new


def _media(kind: str, given: Any, most: float) -> dict[str, Any]:
    """A picture, sound or clip (path or bytes) as a part of a message, in a data URL. Raises Trouble."""
    name, content = (f"{kind} {str(given)!r:.200}", b"") if isinstance(given, str | Path) else (kind, given)
    with contextlib.suppress(OSError, ValueError, TypeError):  # a device or a pipe is no file: it need not end
        content = Path(given).read_bytes() if Path(given).is_file() and Path(given).stat().st_size <= most else content
    if not isinstance(content, bytes | bytearray) or not 0 < len(content) <= most:
        raise Trouble(f"The {name} must be bytes or a readable file, not empty, and {most / 10**6:g} MB at the most.")
    url = f"data:{MIMES[kind]};base64,{base64.b64encode(content).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def changed(before: str, after: str) -> float:
    """How much of a text changed, 0 to 1: one less the Dice coefficient of the pieces of three characters."""
    one, two = (collections.Counter(zip(text, text[1:], text[2:], strict=False)) for text in (before, after))
    total = one.total() + two.total()
    return float(before != after) if not total else 1 - 2 * (one & two).total() / total


def _call(number: int, call: dict[str, Any]) -> dict[str, Any]:
    """A tool call as the server wants it: SAGE writes Ollama's, without an id and with open arguments."""
    given = call["function"].get("arguments") or {}
    function = {**call["function"], "arguments": given if isinstance(given, str) else json.dumps(given)}
    return {"id": f"call_{number}", "type": "function", **call, "function": function}


class OmniIRP(IRPPlugin):  # type: ignore[misc, valid-type]
    """Nothing raises into SAGE's loop: a failure is the text "[OmniIRP: why]" and the energy 1.0."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        given = dict(config) if isinstance(config, dict) else {}
        self._wrong = config_faults(given)
        defaults = {key: default for key, (default, _) in CONFIG.items()}
        super().__init__(defaults | {key: value for key, value in given.items() if key not in self._wrong})
        self.model_name, self.max_response_tokens = self.config["model_name"], self.config["max_response_tokens"]
        self.temperature, self.last_speech = self.config["temperature"], ""
        self.model_path = self.config["endpoint"]  # its presence tells SAGE's pool not to ask Ollama about us
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._number, self._memory = itertools.cycle(range(SPEECH_KEPT)), (0.0, dict[str, Any]())

    def init_state(self, x0: Any, task_ctx: Any = None) -> Any:
        x: dict[str, Any] = {"messages": [], "draft": "", "response": "", "change": 1.0, "error": "", "speech": ""}
        try:
            x["messages"] = self._task(x0, task_ctx)
        except CAUGHT as trouble:
            x["error"] = x["response"] = f"{TAG}{trouble}]"
        return IRPState(x=x, energy_val=NO_ANSWER, meta={"task_ctx": task_ctx, "memory_mb": 0.0})

    def energy(self, state: OwnState) -> float:
        x = state.x if isinstance(state.x, dict) else {}
        return max(FLOOR, UNSETTLED * x.get("change", 1.0)) if x.get("draft") and not x.get("error") else NO_ANSWER

    def step(self, state: OwnState, noise_schedule: Any = None) -> Any:
        """The first draft, or a better one; a new state each time. `noise_schedule`: a temperature, or step -> one."""
        ours = isinstance(state.x, dict) and "messages" in state.x
        x = dict(state.x if ours else self.init_state(state.x, (state.meta or {}).get("task_ctx")).x)
        draft, meta = x["draft"], dict(state.meta or {})
        if draft and self.config["one_shot"]:
            x |= {"change": 0.0, "error": ""}
        elif x["messages"]:
            noise = (lambda: noise_schedule(state.step_idx)) if callable(noise_schedule) else noise_schedule
            again = [{"role": "assistant", "content": draft}, {"role": "user", "content": self.config["refine_prompt"]}]
            reply = self._ask(x["messages"] + again * bool(draft), temperature=noise, speech=self.config["speech"])
            reply.error = reply.error or "" if reply.answer else f"{TAG}The model said nothing.]"
            x |= {"error": reply.error, "response": draft or reply.error, "speech": reply.speech or x["speech"]}
            if not reply.error:
                x |= {"change": changed(draft, reply.answer), "draft": reply.answer, "response": reply.answer}
                meta |= self._measured()
        new = IRPState(x=x, step_idx=state.step_idx + 1, meta=meta)
        new.energy_val = self.energy(new)
        return new

    def get_response(self, prompt: Any) -> str:
        return self._ask(prompt, speech=self.config["speech"]).answer

    def generate_response(
        self, messages: Any, max_new_tokens: int = 300, temperature: float = 0.8, top_k: int = 50, top_p: float = 0.95
    ) -> str:
        return self._ask(messages, max_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p).answer

    def get_chat_response(self, messages: Any, tools: Any = None) -> dict[str, Any]:
        """`raw` is the server's answer, and beside it Ollama's names of its counts, which SAGE's tool loop reads."""
        reply = self._ask(messages, tools=tools or None)
        counts = {"prompt_eval_count": reply.usage.get("prompt_tokens"), "done_reason": reply.ended}
        raw = {} if reply.error else {**reply.raw, **counts, "eval_count": reply.usage.get("completion_tokens")}
        return {"content": reply.answer, "tool_calls": reply.tool_calls, "role": reply.role, "raw": raw}

    def stream_response(self, messages: Any) -> Iterator[str]:
        """Text as it comes; a failure is the last piece. Closing the iterator stops the server."""
        try:
            yield from self._chat(messages, Reply(), stream=True)
        except CAUGHT as trouble:
            yield f"{TAG}{trouble}]"

    def health_check(self) -> bool:
        """Whether the server is ready and takes our key. Asks every time, so it recovers with the server."""
        with contextlib.suppress(*CAUGHT):
            return self._get("/health") is not None and bool(self._get("/v1/models"))
        return False

    def _ask(self, messages: Any, **fields: Any) -> Reply:
        reply, self.last_speech = Reply(), ""
        try:
            collections.deque(self._chat(messages, reply, stream=bool(fields.get("speech")), **fields), maxlen=0)
            reply.speech = self.last_speech = self._keep(reply)
        except OSError as error:  # those of the network come as Trouble; the text stays
            logging.getLogger(__name__).warning("The speech of an answer could not be written (%s).", error)
        except CAUGHT as error:
            reply.error = f"{TAG}{error}]"
        reply.answer = reply.error or reply.text.strip()
        return reply

    def _chat(self, messages: Any, reply: Reply, *, stream: bool, speech: bool = False, **fields: Any) -> Iterator[str]:
        task = messages if isinstance(messages, list) else self._task(messages)
        calls = [[_call(*one) for one in enumerate(message.get("tool_calls") or ())] for message in task]
        told = [{**message, "tool_calls": made} if made else message for message, made in zip(task, calls, strict=True)]
        asked = {key: value() if callable(value) else value for key, value in fields.items() if value is not None}
        given = {"temperature": self.temperature, "voice": self.config["voice"] or None, **asked}
        body = {
            "model": self.model_name or self._served(), "stream": stream, "max_tokens": self.max_response_tokens,
            "messages": [message for message in told if not str(message.get("content")).startswith(TAG)],
            "modalities": ["text", "audio"] if speech else ["text"], "audio": {"format": "pcm"},
            **self.config["extra_body"], **{key: value for key, value in given.items() if value is not None},
        }  # fmt: skip
        yield from self._http("/v1/chat/completions", body, reply.add, restart=stream and not speech)
        if not reply.ended:
            raise Trouble("The server broke off in the middle of the answer.")

    def _task(self, x0: Any, task_ctx: Any = None) -> list[dict[str, Any]]:
        """Text, or a dict with text (or SAGE's prompt), image, audio, video and SAGE's memory, as messages."""
        given = x0 if isinstance(x0, dict) else {"text": x0 if isinstance(x0, str) else ""}
        aims = task_ctx if isinstance(task_ctx, dict) else {}
        text, most = str(given.get("text") or given.get("prompt") or ""), self.config["max_media_mb"] * 10**6
        media = [_media(kind, given[kind], most) for kind in MIMES if given.get(kind) is not None]
        if not (text.strip() or media):
            raise Trouble("There is no task: it must be text, or a dict with text, image, audio or video.")
        told = [self.config["system_prompt"], *(f"{key}: {aims[key]}" for key in AIMS if aims.get(key))]
        system = [{"role": "system", "content": "\n".join(filter(None, told))}] if any(told) else []
        past = [one for one in given.get("memory") or () if isinstance(one, dict) and {"role", "content"} <= one.keys()]
        content = [*media, *([{"type": "text", "text": text}] if text else [])] if media else text
        return [*system, *past, {"role": "user", "content": content}]

    def _keep(self, reply: Reply) -> str:
        """Write the speech of an answer to a WAV file, over the oldest if there are enough. Raises OSError."""
        if not reply.pcm:
            return ""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="omni-irp-")
        path = Path(self.config["speech_folder"] or self._folder.name, f"speech-{id(self):x}-{next(self._number)}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file, wave.open(file, "wb") as wav:
            wav.setparams((1, 2, reply.rate, 0, "NONE", ""))
            wav.writeframes(reply.pcm)
        return str(path)

    def _measured(self) -> dict[str, Any]:
        """The memory of the server's process (API server; not the GPU), as its /metrics tell it."""
        if time.monotonic() >= self._memory[0]:
            found = 0.0
            with contextlib.suppress(*CAUGHT):
                lines = self._get("/metrics").decode().splitlines()
                found = sum(float(line.split()[-1]) for line in lines if line.startswith(RESIDENT)) / 2**20
            self._memory = time.monotonic() + self.config["metrics_seconds"], {"memory_mb": found}
        return self._memory[1]

    def _served(self) -> str:
        found = re.search(r'"id":\s*"([^"]+)"', self._get("/v1/models").decode("utf-8", "replace"))
        return found[1] if found else "default"

    def _get(self, path: str) -> bytes:
        return b"".join(self._http(path, None, bytes))

    def _http(self, path: str, body: Any, add: Callable[[bytes], Any], *, restart: bool = False) -> Iterator[Any]:
        """What `add` makes of each event. A thread makes the request, so the caller goes on in time whatever hangs."""
        if wrong := self._wrong | config_faults(self.config):
            raise Trouble(" ".join(wrong.values()))
        config, endpoint = self.config, self.config["endpoint"].rstrip("/").removesuffix("/v1")
        until = time.monotonic() + (seconds := config["timeout_seconds" if body else "connect_seconds"])
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {config['api_key']}"}
        came, socks, gone = queue.SimpleQueue[Any](), list[socket.socket](), threading.Event()

        def work() -> None:
            try:
                url = urllib.parse.urlsplit(endpoint)
                kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[url.scheme]
                content = json.dumps(body, allow_nan=False) if body else None
                connection = kind(url.hostname or "", url.port, timeout=min(config["connect_seconds"], seconds))
                with contextlib.closing(connection):
                    connection.connect()
                    socks.append(connection.sock)
                    if gone.is_set():  # after the line above: who goes now finds the socket and closes it
                        return
                    connection.sock.settimeout(until - time.monotonic() + 1)  # fails when the caller has long gone
                    connection.request("POST" if body else "GET", url.path + path, content, headers)
                    response, room = connection.getresponse(), MOST_BYTES
                    if response.status != 200:
                        raise _refusal(response.status, response.read(10**5))
                    if response.headers.get_content_type() != "text/event-stream":
                        came.put(add(response.read(room)))
                    while room > 0 and (line := response.readline(room)) and line.strip() != b"data: [DONE]":
                        room -= len(line)
                        came.put(add(line[5:]) if line.startswith(b"data:") else "")
                    came.put(None)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is raised as Trouble where it is waited for
                came.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (piece := came.get(timeout=until - time.monotonic())) is not None:
                if isinstance(piece, Exception):
                    raise piece if isinstance(piece, Trouble) else Trouble(f"No answer from {endpoint} ({piece!r}).")
                if piece:
                    yield piece
                    until = time.monotonic() + seconds if restart else until
        except (queue.Empty, ValueError) as error:  # no time is left, or less
            raise Trouble(f"No answer from {endpoint} in time ({seconds:g} s at the most).") from error
        finally:
            gone.set()
            for sock in socks:
                with contextlib.suppress(OSError):  # closed already
                    sock.shutdown(socket.SHUT_RDWR)
