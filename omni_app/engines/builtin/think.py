"""The language model: a small GGUF run by llama.cpp's server, which answers several conversations in one batch."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_app.conversation import EndReason
from omni_app.errors import BadRequest, EngineFailed, EngineUnavailable

Turn = dict[str, str]
"""One chat turn as llama.cpp takes it: `role` and `content`."""

SLOTS = 8
"""Conversations answered at the same time; each slot keeps the prompt of its last conversation, so that the next
turn of it prefills only what is new."""
CONTEXT_TOKENS = 2048
"""Of each slot, prompt and answer together. Slots do not share their memory, so a long prompt starves nobody."""
MAX_TOKENS = 256
"""Of an answer, where nobody asks for another number."""

_LEAST_ANSWER_TOKENS = 64
_PREFILL_TOKENS = 64
"""Prefilled in one step: a stop is seen, and other conversations advance, between two steps (0.3 s on one core)."""
_MOST_THREADS = 4
"""A model this small is bound by memory bandwidth; more threads only take cores from the speech."""

_SAMPLING: Mapping[str, object] = {
    # Chosen by reading answers to everyday questions. A repeat penalty also punishes words of the question ("how many
    # days are in a week?" -> "19"), so loops are broken by DRY instead, which only looks at long repeated runs.
    "temperature": 0.2,
    "min_p": 0.1,
    "dry_multiplier": 0.8,
    "dry_allowed_length": 6,
    "dry_penalty_last_n": 512,
}


@dataclass(frozen=True, slots=True)
class Thought:
    """How an answer ended, and what it took."""

    reason: EndReason
    prompt_tokens: int | None
    completion_tokens: int | None


def system_prompt(speech: bool) -> str:
    """Short, because every new conversation waits for its prefill. Lists and markup are no good to a voice."""
    style = "plain spoken English, without lists" if speech else "plain English"
    return f"You are a helpful assistant. Give short, clear and correct answers in {style}."


def sensible_threads() -> int:
    """Leaves a core to everything else: with as many threads as cores, generation collapses as soon as another
    thread runs (58 tokens/s with one thread, 1 to 14 with two, measured on two busy cores)."""
    return max(1, min(len(os.sched_getaffinity(0)) - 1, _MOST_THREADS))


class Thinker:
    """Loads one GGUF; `think` may then be called from several threads at once."""

    def __init__(self, slots: int = SLOTS, context_tokens: int = CONTEXT_TOKENS) -> None:
        self._slots = slots
        self._context_tokens = context_tokens
        self._server: Any = None
        self._folder: Path | None = None
        self._closing = threading.Event()
        self._idle = threading.Condition()
        self._thinking = 0

    def load(self, path: Path) -> None:
        """Blocks until the first answer would be quick. Raises EngineUnavailable."""
        import xllamacpp

        self._folder = Path(tempfile.mkdtemp(prefix="omni-"))
        params = self._params(xllamacpp, path)
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            self.close()
            raise EngineUnavailable(
                f"The language model {path.name} could not be loaded: the file is not a GGUF that llama.cpp can run, "
                "or memory ran out. Unset OMNI_BUILTIN_MODEL to take the model that comes with the app."
            ) from error
        self.think(
            [{"role": "system", "content": system_prompt(speech=True)}, {"role": "user", "content": "Hi"}],
            lambda _: None,
            max_tokens=1,
        )

    def _params(self, xllamacpp: Any, path: Path) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self._slots
        params.n_ctx = self._slots * self._context_tokens
        # Quantised keys and values halve the largest piece of memory (188 MB less at 16 384 tokens).
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        params.n_batch = params.n_ubatch = _PREFILL_TOKENS
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = sensible_threads()
            cpu.poll = 0
        params.cache_ram_mib = 0
        params.fit_params = False
        params.ui = False
        params.verbosity = -1
        # The server insists on listening somewhere; a socket in a private folder, with a key nobody knows, keeps web
        # pages and other users of this machine out.
        params.hostnames = [f"{self._folder}/llama.sock"]
        params.api_keys = [secrets.token_urlsafe(32)]
        params.n_threads_http = 1
        return params

    def think(
        self,
        messages: Sequence[Turn],
        say: Callable[[str], None],
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float | None = None,
        seed: int | None = None,
        cancelled: threading.Event | None = None,
    ) -> Thought:
        """Answer the last turn, calling `say` with each piece of text from this thread; blocks until the end.

        The oldest turns are left out when all of them do not fit. Setting `cancelled` ends it within a second.
        Raises BadRequest when the last turn alone does not fit, EngineFailed when the model breaks.
        """
        turns = list(messages)
        request = _request(max_tokens, temperature, seed)
        room = self._context_tokens - min(max_tokens, self._context_tokens // 4)
        with self._working():
            while True:
                run = _Run(say, cancelled or threading.Event(), self._closing, room if _can_shorten(turns) else None)
                self._server.handle_chat_completions({**request, "messages": [_plain(turn) for turn in turns]}, run)
                if not run.too_long:
                    return run.thought()
                if not _can_shorten(turns):
                    raise self._too_long(turns[-1]["content"], run.prompt_tokens or 1)
                turns = _shorten(turns)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._idle:
            if self._server is None or self._closing.is_set():
                raise EngineUnavailable("The language model is not loaded.")
            self._thinking += 1
        try:
            yield
        finally:
            with self._idle:
                self._thinking -= 1
                self._idle.notify_all()

    def _too_long(self, text: str, prompt_tokens: int) -> BadRequest:
        limit = self._context_tokens - _LEAST_ANSWER_TOKENS
        chars = len(text) * limit // max(prompt_tokens, limit + 1)
        return BadRequest(
            f"The message is too long for the small built-in model: it reads at most {limit:,} tokens at once, about "
            f"{chars:,} characters of this text, and the message has {len(text):,}. Please shorten it or send it in parts."
        )

    def close(self) -> None:
        """End what is being said and free the model; safe to call twice."""
        self._closing.set()
        with self._idle:
            # The server must outlive every call into it.
            self._idle.wait_for(lambda: self._thinking == 0)
            self._server = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Run:
    """Follows one streamed answer; called by llama.cpp with each chunk, and returns True to stop it."""

    def __init__(
        self, say: Callable[[str], None], cancelled: threading.Event, closing: threading.Event, room: int | None
    ) -> None:
        self._say = say
        self._stops = (cancelled, closing)
        self._room = room
        """Prompt tokens above which it is better to leave turns out than to cut the answer; None takes any."""
        self._error: Mapping[str, Any] | None = None
        self._finish: str | None = None
        self._usage: Mapping[str, int] = {}
        self.prompt_tokens: int | None = None
        self.too_long = False

    def __call__(self, chunk: Mapping[str, Any]) -> bool:
        if "error" in chunk:
            self._take_error(chunk["error"])
        elif "prompt_progress" in chunk:
            self.prompt_tokens = int(chunk["prompt_progress"]["total"])
            self.too_long = self._room is not None and self.prompt_tokens > self._room
        else:
            self._take(chunk)
        return self.too_long or any(stop.is_set() for stop in self._stops)

    def _take_error(self, error: Mapping[str, Any]) -> None:
        if error.get("type") == "exceed_context_size_error":
            self.too_long = True
            self.prompt_tokens = int(error["n_prompt_tokens"])
        else:
            self._error = error

    def _take(self, chunk: Mapping[str, Any]) -> None:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", ()):
            self._finish = choice.get("finish_reason") or self._finish
            if (text := choice["delta"].get("content")) and not any(stop.is_set() for stop in self._stops):
                self._say(text)

    def thought(self) -> Thought:
        if self._error is not None:
            raise EngineFailed(f"The language model broke off: {self._error.get('message', 'no reason given')}.")
        tokens = (self._usage.get("prompt_tokens", self.prompt_tokens), self._usage.get("completion_tokens"))
        if any(stop.is_set() for stop in self._stops):
            return Thought("cancelled", *tokens)
        if self._finish is None:
            raise EngineFailed("The language model stopped in the middle of its answer; please ask again.")
        return Thought("length" if self._finish == "length" else "stop", *tokens)


def _request(max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, object]:
    request: dict[str, object] = {
        **_SAMPLING,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # chunks during prefill too, at which a stop is seen
        "max_tokens": max_tokens,
    }
    if temperature is not None:
        request["temperature"] = temperature
    if seed is not None:
        request["seed"] = seed
    return request


def _plain(turn: Turn) -> Turn:
    """Chat markers that somebody typed must not act as markers."""
    return {"role": turn["role"], "content": turn["content"].replace("<|", "< |")}


def _can_shorten(turns: Sequence[Turn]) -> bool:
    return sum(turn["role"] != "system" for turn in turns) > 1


def _shorten(turns: Sequence[Turn]) -> list[Turn]:
    """Without the oldest exchange: its user turn and the answers to it. System turns stay."""
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"][1:]
    while len(rest) > 1 and rest[0]["role"] != "user":
        rest = rest[1:]
    return system + rest
