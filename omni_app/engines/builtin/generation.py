"""One streamed generation of llama.cpp's server: what is asked for, and what its chunks mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omni_app.conversation import EndReason
from omni_app.engines.builtin.pacing import Cancelled
from omni_app.errors import EngineFailed

Turn = dict[str, str]
"""One chat turn as llama.cpp takes it: `role` and `content`."""

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


def request_for(max_tokens: int, temperature: float | None, seed: int | None) -> dict[str, object]:
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


class Run:
    """Follows one streamed answer; called by llama.cpp with each chunk, and returns True to stop it."""

    def __init__(self, say: Callable[[str], None], stopped: Cancelled, room: int) -> None:
        self._say = say
        self._stopped = stopped
        self._room = room
        """Prompt tokens above which it is not worth going on."""
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
            self.too_long = self.prompt_tokens > self._room
        else:
            self._take(chunk)
        return self.too_long or self._stopped()

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
            if (text := choice["delta"].get("content")) and not self._stopped():
                self._say(text)

    def thought(self) -> Thought:
        if self._error is not None:
            raise EngineFailed(f"The language model broke off: {self._error.get('message', 'no reason given')}.")
        tokens = (self._usage.get("prompt_tokens", self.prompt_tokens), self._usage.get("completion_tokens"))
        if self._stopped():
            return Thought("cancelled", *tokens)
        if self._finish is None:
            raise EngineFailed("The language model stopped in the middle of its answer; please ask again.")
        return Thought("length" if self._finish == "length" else "stop", *tokens)
