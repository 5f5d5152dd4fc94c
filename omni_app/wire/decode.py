"""A server's chunks, read back into our events; made to meet streams that are torn, cut short or wrong.

Besides vllm-omni's dialect this reads OpenAI's own, in which speech is `delta.audio` (`data`, and what it says as
`transcript`), as api.openai.com, SGLang-Omni and TensorRT Edge-LLM send it; no chunk is of both kinds.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import wave
from collections.abc import Iterator, Mapping

from omni_app.conversation import AudioDelta, EndReason, Event, Heard, ReplyEnd, ReplyStats, TextDelta, clean
from omni_app.errors import EngineFailed
from omni_app.wire.faults import error_in_stream

SAMPLE_RATE = 24_000
"""Hz of the speech when a server does not say (vllm-omni before 0.30)."""
LONGEST_CHUNK = 64 * 2**20
"""Bytes of one chunk, and of one line; 64 MiB of base64 is 17 minutes of speech, which no server sends at once."""
ENDS: dict[str, EndReason] = {"length": "length", "abort": "cancelled"}


class ReplyDecoder:
    """Reads one streamed reply from bytes cut anywhere. `feed` gives the events as they become whole; `close` says what
    it means that the server has closed the connection. Both raise an error after the events that came before it.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        """`max_tokens`: the limit that was asked for. An answer of that many tokens ends with `length`, whatever its
        finish reason says: with speech on, the server's finish reason is that of the speech."""
        self._lines = _Lines()
        self._data: list[str] = []
        self._held = 0
        self._max_tokens = max_tokens
        self._begun = False
        self._finish: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._stages: Mapping[str, object] = {}
        self.done = False
        """True after ReplyEnd: what may still follow is not looked at."""

    def feed(self, data: bytes) -> Iterator[Event]:
        for line in self._lines.feed(data):
            if not self.done:
                yield from self._line(line)

    def close(self) -> Iterator[Event]:
        """Raises EngineFailed when the answer was not over."""
        if self.done:
            return
        if self._finish is None:
            raise EngineFailed("The model's server closed the connection in the middle of the answer. Please retry.")
        yield from self._end()

    def _line(self, line: bytes) -> Iterator[Event]:
        if not line:
            yield from self._dispatch()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
            self._held += len(line)
            if self._held > LONGEST_CHUNK:
                raise _endless()

    def _dispatch(self) -> Iterator[Event]:
        data, self._data, self._held = "\n".join(self._data), [], 0
        if not data or self.done:
            return
        if data.strip() == "[DONE]":
            yield from self._end()
        else:
            yield from self._chunk(_parsed(data))

    def _chunk(self, chunk: Mapping[str, object]) -> Iterator[Event]:
        if chunk.get("error"):
            raise error_in_stream(chunk, begun=self._begun)
        heard = chunk.get("heard")
        if isinstance(heard, str):
            yield Heard(clean(heard))
        self._count(chunk)
        for choice in _mappings(chunk.get("choices")):
            self._finish = _text_or_none(choice.get("finish_reason")) or self._finish
            yield from self._delta(choice, chunk.get("modality"))

    def _delta(self, choice: Mapping[str, object], modality: object) -> Iterator[Event]:
        delta = _mapping(choice.get("delta"))
        if audio := _mapping(delta.get("audio")):
            self._begun = True
            yield from _spoken(audio, with_text=not delta.get("content"))
        content = delta.get("content")
        if not content:
            return
        if not isinstance(content, str):
            raise EngineFailed("The model's server sent an answer in a form that this app does not know.")
        self._begun = True
        if modality == "audio":
            yield from decode_sound(content, _mapping(choice.get("audio_metadata")))
        elif modality in (None, "text"):
            yield TextDelta(clean(content))

    def _count(self, chunk: Mapping[str, object]) -> None:
        usage = _mapping(chunk.get("usage"))
        prompt, completion = _count(usage, "prompt_tokens"), _written(usage)
        if chunk.get("modality") == "audio":
            # Speech chunks count the prompt alone, and 0 before the server knows even that.
            self._prompt_tokens = prompt or self._prompt_tokens
        elif prompt or completion:
            # All zero is what a server counts that was asked for speech alone.
            self._prompt_tokens, self._completion_tokens = prompt, completion
        self._stages = _stages(chunk) or self._stages

    def _end(self) -> Iterator[Event]:
        if not self._begun and self._finish is None:
            raise EngineFailed("The model's server ended the answer before it said anything. Please retry.")
        self.done = True
        yield from _ending(
            ReplyStats(self._prompt_tokens, self._completion_tokens, self._stages), self._finish, self._max_tokens
        )


def decode_body(body: object, max_tokens: int | None = None) -> list[Event]:
    """The events of a reply that came as one body. Scans every choice: vllm-omni 0.26 answers with text and speech in
    two choices, 0.30 in one. Raises EngineFailed."""
    whole = _mapping(body)
    if whole.get("error"):
        raise error_in_stream(whole, begun=False)
    choices = _mappings(whole.get("choices"))
    if not choices:
        raise EngineFailed("The model's server sent an answer in a form that this app does not know.")
    events: list[Event] = [Heard(clean(heard))] if isinstance(heard := whole.get("heard"), str) else []
    messages = [_mapping(choice.get("message")) for choice in choices]
    written = [content for message in messages if isinstance(content := message.get("content"), str) and content]
    events += [TextDelta(clean(content)) for content in written]
    for choice, message in zip(choices, messages, strict=True):
        audio = _mapping(message.get("audio"))
        events += _spoken(audio, with_text=not written, metadata=_mapping(choice.get("audio_metadata")))
    usage = _mapping(whole.get("usage"))
    stats = ReplyStats(_count(usage, "prompt_tokens"), _written(usage), _stages(whole))
    reasons = [_text_or_none(choice.get("finish_reason")) for choice in choices]
    return [*events, *_ending(stats, "length" if "length" in reasons else reasons[0], max_tokens)]


def _spoken(
    audio: Mapping[str, object], *, with_text: bool, metadata: Mapping[str, object] | None = None
) -> Iterator[Event]:
    """OpenAI's `audio` object. `with_text`: its transcript is the text of the answer, which nothing else tells.
    TensorRT Edge-LLM adds `format` and `sample_rate`; without one the sound is 24 kHz, as OpenAI's pcm16 is."""
    transcript, data = audio.get("transcript"), audio.get("data")
    if with_text and isinstance(transcript, str) and transcript:
        yield TextDelta(clean(transcript))
    if isinstance(data, str):
        given = {"format": audio.get("format"), "sample_rate_hz": audio.get("sample_rate")}
        yield from decode_sound(data, metadata or given)


def decode_sound(content: str, metadata: Mapping[str, object]) -> list[AudioDelta]:
    """One chunk of speech, PCM or a whole WAV file; none when it holds no sample. Raises EngineFailed."""
    try:
        sound = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EngineFailed("The model's server sent speech that is cut or damaged (not valid base64).") from error
    if sound[:4] == b"RIFF" and sound[8:12] == b"WAVE":
        return _from_wav(sound)
    if metadata.get("format") not in (None, "pcm", "pcm16"):
        raise EngineFailed("The model's server sends speech in a format that was not asked for; PCM and WAV are read.")
    rate = metadata.get("sample_rate_hz") or SAMPLE_RATE
    if len(sound) % 2 or metadata.get("channels") not in (None, 1) or not isinstance(rate, int) or rate <= 0:
        raise EngineFailed("The model's server sent speech that is damaged, or not 16-bit mono.")
    return [AudioDelta(sound, rate)] if sound else []


def _from_wav(sound: bytes) -> list[AudioDelta]:
    try:
        with wave.open(io.BytesIO(sound)) as wav:
            shape = (wav.getsampwidth(), wav.getnchannels())
            rate, frames, pcm = wav.getframerate(), wav.getnframes(), wav.readframes(wav.getnframes())
    except (wave.Error, EOFError, RuntimeError, struct.error) as error:  # what `wave` raises on damaged headers
        raise EngineFailed("The model's server sent a piece of speech that is not a readable WAV file.") from error
    if shape != (2, 1) or rate <= 0 or len(pcm) != frames * 2:
        raise EngineFailed("The model's server sent speech that is cut, or not 16-bit mono.")
    return [AudioDelta(pcm, rate)] if pcm else []


def _ending(stats: ReplyStats, finish: str | None, max_tokens: int | None) -> Iterator[Event]:
    if stats != ReplyStats():
        yield stats
    reason = ENDS.get(finish or "", "stop")
    at_limit = max_tokens is not None and (stats.completion_tokens or 0) >= max_tokens
    cut = at_limit or _mapping(stats.stages.get("0")).get("finish_reason") == "length"
    yield ReplyEnd("length" if cut and reason == "stop" else reason)


class _Lines:
    """Bytes in, whole lines out. A line break is one ASCII byte, so no character can be torn here."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        seen = len(self._pending)
        self._pending += data
        while (end := self._pending.find(b"\n", seen)) >= 0:
            line = bytes(self._pending[:end]).removesuffix(b"\r")
            del self._pending[: end + 1]
            seen = 0
            yield line
        if len(self._pending) > LONGEST_CHUNK:
            raise _endless()


def _endless() -> EngineFailed:
    return EngineFailed("The model's server sent a piece of the answer that never ends; that is not a chat stream.")


def _parsed(data: str) -> Mapping[str, object]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EngineFailed("The model's server sent a piece of the answer that is torn (not valid JSON).") from error
    if not isinstance(chunk, Mapping):
        raise EngineFailed("The model's server sent an answer in a form that this app does not know.")
    return chunk


def _stages(chunk: Mapping[str, object]) -> Mapping[str, object]:
    metrics = _mapping(chunk.get("metrics"))
    return _mapping(metrics.get("stage_metrics")) or metrics


def _written(usage: Mapping[str, object]) -> int | None:
    """The tokens of the text: OpenAI counts those of the speech too, and says how many they are."""
    spoken = _count(_mapping(usage.get("completion_tokens_details")), "audio_tokens") or 0
    whole = _count(usage, "completion_tokens")
    return whole if whole is None else max(0, whole - spoken)


def _count(usage: Mapping[str, object], key: str) -> int | None:
    given = usage.get(key)
    return given if isinstance(given, int) else None


def _mapping(given: object) -> Mapping[str, object]:
    return given if isinstance(given, Mapping) else {}


def _mappings(given: object) -> list[Mapping[str, object]]:
    return [one for one in given if isinstance(one, Mapping)] if isinstance(given, list) else []


def _text_or_none(given: object) -> str | None:
    return given if isinstance(given, str) else None
