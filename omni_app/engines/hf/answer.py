"""One reply, made on the worker thread: the thinker's text as it comes, then the talker's speech as a whole."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from omni_app.conversation import (
    AudioDelta,
    EndReason,
    Message,
    ReplyEnd,
    ReplyOptions,
    ReplyStats,
    TextDelta,
)
from omni_app.engines.builtin.outbox import Outbox
from omni_app.engines.hf.loading import Loaded
from omni_app.engines.hf.prompt import Stopped
from omni_app.errors import BadRequest, EngineFailed, OmniError

log = logging.getLogger(__name__)

SAMPLE_RATE = 24_000
"""Of code2wav: 1920 samples for each of 12.5 frames a second."""
MAX_TOKENS = 2048
_PAUSE_FRAMES = 25
_TOKEN_FRAMES = 15
"""1.2 s for each token of text, several times what speech takes, and 2 s for the silence around it."""
_PIECE = SAMPLE_RATE
"""Samples of speech handed over at a time."""


class Watch:
    """Ends whatever the model does, before its next layer, once the reply is not wanted any more."""

    def __init__(self, model: Any) -> None:
        self._cancelled: Callable[[], bool] = lambda: False
        for module in _layers(model):
            module.register_forward_pre_hook(self._check)

    @contextmanager
    def over(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        self._cancelled = cancelled
        try:
            yield
        finally:
            self._cancelled = lambda: False

    def _check(self, module: Any, inputs: Any) -> None:
        if self._cancelled():
            raise Stopped


def _layers(model: Any) -> Iterator[Any]:
    thinker = model.thinker.model
    yield from (*thinker.language_model.layers, *thinker.audio_tower.layers, *thinker.visual.blocks)
    if model.has_talker:
        yield from (*model.talker.model.layers, *model.code2wav.decoder)


class _Text(BaseStreamer):  # type: ignore[misc]
    """Tokens into text as soon as they make whole characters."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        self.tokens: list[int] = []
        self.first_seconds: float | None = None
        self._began = time.monotonic()
        self._tokenizer = tokenizer.backend_tokenizer
        self._pieces = DecodeStream(skip_special_tokens=True)
        self._say = say
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:  # `generate` begins with the prompt
            self._prompt_seen = True
            return
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self._began
        for token in value.flatten().tolist():
            self.tokens.append(token)
            if piece := self._pieces.step(self._tokenizer, token):
                self._say(piece)

    def end(self) -> None:
        """Nothing is held back."""


class _LongEnough(StoppingCriteria):  # type: ignore[misc]
    """Ends a talker that does not find its own end: nobody takes that long to say that much."""

    def __init__(self, text: _Text) -> None:
        self._text = text
        self._frames = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self._frames += 1
        over = self._frames >= _PAUSE_FRAMES + _TOKEN_FRAMES * len(self._text.tokens)
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)


class Answer:
    def __init__(
        self,
        loaded: Loaded,
        watch: Watch,
        outbox: Outbox,
        messages: Sequence[Message],
        options: ReplyOptions,
    ) -> None:
        self._loaded = loaded
        self._watch = watch
        self._out = outbox
        self._messages = messages
        self._options = options

    def run(self) -> None:
        """Blocks until all is said and spoken; every failure goes to the outbox."""
        try:
            with self._watch.over(self._out.cancelled.is_set), torch.inference_mode():
                reason = self._reply()
            self._out.put(ReplyEnd(reason))
            self._out.end()
        except Stopped:
            self._out.end()
        except OmniError as error:
            self._out.fail(error)
        except torch.OutOfMemoryError:
            log.exception("out of GPU memory")
            self._out.fail(EngineFailed(
                "The GPU's memory is full. What was said stays; ask again with less media or in a new conversation."
            ))  # fmt: skip
        except Exception:
            log.exception("a reply failed")
            self._out.fail(EngineFailed("The model broke in the middle of the answer; the log of the app says why."))
        finally:
            _free()

    def _reply(self) -> EndReason:
        model, reader = self._loaded.model, self._loaded.reader
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in reader.inputs(self._messages, self._out.cancelled.is_set).items()
        }
        prompt = int(inputs["input_ids"].shape[-1])
        most = self._room(prompt)
        text = _Text(reader.tokenizer, lambda piece: self._out.put(TextDelta(piece)))
        if self._options.seed is not None:
            torch.manual_seed(self._options.seed)
        began = time.monotonic()
        made = model.generate(
            **inputs, **self._sampling(), **self._speaking(text, most), thinker_streamer=text,
            thinker_min_new_tokens=1, thinker_max_new_tokens=most,
            thinker_eos_token_id=reader.end_token, thinker_pad_token_id=reader.end_token,
        )  # fmt: skip
        wave = made[1] if isinstance(made, tuple) else None
        if wave is not None:
            self._speak(wave)
        stages = {"first_token_seconds": text.first_seconds, "seconds": time.monotonic() - began}
        self._out.put(ReplyStats(prompt, len(text.tokens), stages))
        ended = bool(text.tokens) and text.tokens[-1] == reader.end_token
        return "stop" if ended else "length"

    def _room(self, prompt: int) -> int:
        """How many tokens the answer may have. Raises BadRequest when the prompt fills the context."""
        context = int(self._loaded.model.config.thinker_config.text_config.max_position_embeddings)
        if prompt >= context:
            raise BadRequest(
                f"The conversation has {prompt} tokens, and the model takes {context}; begin a new one, or send less."
            )
        return min(self._options.max_tokens or MAX_TOKENS, context - prompt)

    def _sampling(self) -> dict[str, Any]:
        """Greedy unless a temperature is asked for, as vLLM-Omni does."""
        temperature = self._options.temperature
        if not temperature:
            return {"thinker_do_sample": False}
        return {"thinker_do_sample": True, "thinker_temperature": temperature}

    def _speaking(self, text: _Text, most: int) -> dict[str, Any]:
        voices = self._loaded.voices
        # `generate` cannot speak a single token, nor put together the frames of a talker that ends at once.
        if not (voices and self._options.speech and most > 1):
            return {"return_audio": False}
        return {
            "return_audio": True, "speaker": self._options.voice or voices[0], "talker_min_new_tokens": 2,
            "talker_stopping_criteria": StoppingCriteriaList([_LongEnough(text)]),
        }  # fmt: skip

    def _speak(self, wave: torch.Tensor) -> None:
        """Hand over speech [1, 1, samples], -1 to 1."""
        pcm = (wave.flatten().float().clamp(-1, 1) * 32767).to(torch.int16).cpu().numpy().astype("<i2")
        for start in range(0, len(pcm), _PIECE):
            self._out.put(AudioDelta(pcm[start : start + _PIECE].tobytes(), SAMPLE_RATE))


def _free() -> None:
    """Caches of a failed answer hang on its traceback, which only a collection ends."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
