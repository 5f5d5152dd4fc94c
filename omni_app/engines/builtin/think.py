"""The language model: a small GGUF run by llama.cpp's server, which answers several conversations in one batch."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omni_app.engines.builtin.generation import Run, Thought, Turn, request_for
from omni_app.engines.builtin.pacing import POLL_SECONDS, Cancelled
from omni_app.errors import BadRequest, EngineUnavailable, OmniError
from omni_app.scratch import Scratch, sweep

SLOTS = 8
"""Conversations answered at the same time; each slot keeps the prompt of its last conversation, so that the next
turn of it prefills only what is new."""
CONTEXT_TOKENS = 2048
"""Of each slot, prompt and answer together. Slots do not share their memory, so a long prompt starves nobody."""
MAX_TOKENS = 160
"""Of an answer, where nobody asks for another number."""

_LEAST_ANSWER_TOKENS = 64
_MOST_CHARS_PER_TOKEN = 6
"""English prose has about 4.5; what is longer than this many is not worth tokenising to see whether it fits."""
_PREFILL_TOKENS = 32
"""Prefilled in one step: a stop is seen, and other conversations advance, between two steps (about 0.3 s apart)."""
_MOST_THREADS = 4
"""A model this small is bound by memory bandwidth; more threads only take cores from the speech."""


def system_prompt(speech: bool) -> str:
    """Short, because every new conversation waits for its prefill. Lists and markup are no good to a voice."""
    sentences = "short spoken sentences" if speech else "short sentences"
    return f"You are a helpful, friendly assistant. Answer in {sentences}, in plain English."


def sensible_threads() -> int:
    """Leaves a core to everything else: with as many threads as cores, generation collapses as soon as another
    thread runs (58 tokens/s with one thread, 1 to 14 with two, measured on two busy cores)."""
    return max(1, min(len(os.sched_getaffinity(0)) - 1, _MOST_THREADS))


class Thinker:
    """Loads one GGUF; `think` may then be called from several threads at once."""

    def __init__(self, slots: int = SLOTS, context_tokens: int = CONTEXT_TOKENS) -> None:
        self._slots = slots
        self._context_tokens = context_tokens
        self._most_prompt_tokens = context_tokens - _LEAST_ANSWER_TOKENS
        self._free_slots = threading.BoundedSemaphore(slots)
        self._server: Any = None
        self._folder: Scratch | None = None
        self._closing = threading.Event()
        self._idle = threading.Condition()
        self._thinking = 0

    def load(self, path: Path) -> None:
        """Blocks until the first answer would be quick; may be repeated after a failure. Raises EngineUnavailable."""
        import xllamacpp

        self._closing.clear()
        sweep()
        self._folder = Scratch()
        params = self._params(xllamacpp, path, self._folder.path)
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            self.close()
            raise EngineUnavailable(
                f"The language model {path.name} could not be loaded: the file is not a GGUF that llama.cpp can run, "
                "or memory ran out. Unset OMNI_BUILTIN_MODEL to take the model that comes with the app."
            ) from error
        self._warm_up()

    def _warm_up(self) -> None:
        turns = [{"role": "system", "content": system_prompt(speech=True)}, {"role": "user", "content": "Hi"}]
        try:
            self.think(turns, lambda _: None, max_tokens=1)
        except OmniError:
            self.close()
            raise

    def _params(self, xllamacpp: Any, path: Path, folder: Path) -> Any:
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
        params.hostnames = [f"{folder}/llama.sock"]
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
        cancelled: Cancelled = lambda: False,
    ) -> Thought:
        """Answer the last turn, calling `say` with each piece of text from this thread; blocks until the end.

        The oldest turns are left out when all of them take more than half of the context. Ends within a second of
        `cancelled` coming true.
        Raises BadRequest when the last turn alone does not fit, EngineFailed when the model breaks.
        """
        request = request_for(min(max_tokens, self._context_tokens), temperature, seed)
        half = self._context_tokens // 2
        shorter = that_may_fit(shortened(messages), half * _MOST_CHARS_PER_TOKEN)
        with self._slot(lambda: cancelled() or self._closing.is_set()) as stopped:
            while not stopped():
                turns = shorter.pop(0)
                run = Run(say, stopped, half if shorter else self._most_prompt_tokens)
                self._server.handle_chat_completions({**request, "messages": [_plain(turn) for turn in turns]}, run)
                if not run.too_long:
                    return run.thought()
                if not shorter:
                    raise self._too_long(turns[-1]["content"], run.prompt_tokens or 1)
                shorter = that_may_fit(shorter, half * _chars(turns) // (run.prompt_tokens or 1))
        return Thought("cancelled", None, None)

    @contextmanager
    def _slot(self, stopped: Cancelled) -> Iterator[Cancelled]:
        """Waits for a slot here, not inside llama.cpp, where a stop would not be seen while waiting."""
        with self._idle:
            if self._server is None or self._closing.is_set():
                raise EngineUnavailable("The language model is not loaded.")
            self._thinking += 1
        got = False
        try:
            while not got and not stopped():
                got = self._free_slots.acquire(timeout=POLL_SECONDS)
            yield stopped
        finally:
            if got:
                self._free_slots.release()
            with self._idle:
                self._thinking -= 1
                self._idle.notify_all()

    def _too_long(self, text: str, prompt_tokens: int) -> BadRequest:
        limit = self._most_prompt_tokens
        chars = len(text) * limit // max(prompt_tokens, limit + 1)
        return BadRequest(
            f"The message is too long for the small built-in model: it reads at most {limit:,} tokens at once, about "
            f"{chars:,} characters of this text, and the message has {len(text):,}. Please shorten it or send it in "
            "parts."
        )

    def close(self) -> None:
        """End what is being said and free the model; safe to call twice."""
        self._closing.set()
        with self._idle:
            # The server must outlive every call into it.
            self._idle.wait_for(lambda: self._thinking == 0)
            self._server = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _plain(turn: Turn) -> Turn:
    """Chat markers that somebody typed must not act as markers."""
    return {"role": turn["role"], "content": turn["content"].replace("<|", "< |")}


def shortened(turns: Sequence[Turn]) -> list[list[Turn]]:
    """The conversation whole, then without its oldest exchanges, fewer and fewer, down to the last one.

    The number left out moves in steps, so that from one turn of a long conversation to the next the prompt mostly
    begins as it did before, and need not be prefilled again.
    """
    system = [turn for turn in turns if turn["role"] == "system"]
    exchanges = _exchanges([turn for turn in turns if turn["role"] != "system"])
    last = len(exchanges) - 1
    starts = sorted({n for n in (0, 1, 2, *range(4, last, 4), last - 2, last - 1, last) if 0 <= n <= last})
    return [[*system, *(turn for exchange in exchanges[start:] for turn in exchange)] for start in starts]


def that_may_fit(prompts: list[list[Turn]], chars: int) -> list[list[Turn]]:
    """`prompts`, which get shorter and shorter, from the first that has at most `chars` on; at least the last one.

    Tokenising is exact but slow, and cannot be stopped: a history of millions of characters would take minutes.
    """
    first = next((n for n, prompt in enumerate(prompts) if _chars(prompt) <= chars), len(prompts) - 1)
    return prompts[first:]


def _chars(turns: Sequence[Turn]) -> int:
    return sum(len(turn["content"]) for turn in turns)


def _exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Cut before every user turn."""
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if turn["role"] == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges
