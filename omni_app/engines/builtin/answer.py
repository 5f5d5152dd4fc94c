"""One reply of the builtin engine, made on a worker thread: hear, look, think, and speak what is said."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from omni_app.conversation import EndReason, Heard, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.builtin.describe import LIMITS, describe_recording, numbered
from omni_app.engines.builtin.history import last_user_message, turns, user_words
from omni_app.engines.builtin.outbox import Outbox
from omni_app.engines.builtin.parts import Mind, Speech
from omni_app.engines.builtin.senses import Senses, Stopped
from omni_app.engines.builtin.think import MAX_TOKENS, system_prompt
from omni_app.errors import EngineFailed, OmniError

log = logging.getLogger(__name__)

NO_WORDS = (
    "I heard no words in that recording. I understand spoken English; please say it again, closer to the microphone."
)
_BROKE = "The built-in engine broke in the middle of the answer; please ask again. The log of the app says why."


class Answer:
    def __init__(
        self,
        mind: Mind,
        senses: Senses,
        outbox: Outbox,
        speech: Speech | None,
        messages: Sequence[Message],
        options: ReplyOptions,
    ) -> None:
        """Raises BadRequest when there is nothing to answer."""
        self._mind = mind
        self._senses = senses
        self._out = outbox
        self._cancelled = outbox.cancelled.is_set
        self._speech = speech
        self._speaking: _Speaking | None = None
        self._messages = messages
        self._message = last_user_message(messages)
        self._options = options

    def run(self) -> None:
        """Blocks until all is said and spoken; every failure goes to the outbox."""
        if self._speech is not None:
            self._speaking = _Speaking(self._speech, self._out)
        try:
            reason = self._reply()
            self._finish_speech()
            self._out.put(ReplyEnd(reason))
            self._out.end()
        except Stopped:
            self._out.end()
        except OmniError as error:
            self._out.fail(error)
        except Exception:
            log.exception("a reply failed")
            self._out.fail(EngineFailed(_BROKE))
        finally:
            if self._speaking is not None:
                self._speaking.finish()

    def _reply(self) -> EndReason:
        sounds = [part for part in self._message.media if part.kind in ("audio", "video")]
        heard = {part: self._senses.hear(part, self._cancelled) for part in sounds}
        if words := "\n".join(filter(None, heard.values())):
            self._out.put(Heard(words))
        if any(part.kind in ("image", "video") for part in self._message.media):
            return self._describe(heard)
        return self._think([text or "" for text in heard.values()])

    def _describe(self, heard: dict[Part, str | None]) -> EndReason:
        """Facts composed here, not by the language model: one this small turns them into things that are not so."""
        # Without typed words a recording is the question, not something to be described.
        asked_aloud = not self._message.text.strip()
        described = [part for part in self._message.media if not (part.kind == "audio" and asked_aloud)]
        descriptions = (self._description(part, heard.get(part)) for part in described)
        for text in numbered(descriptions) if len(described) > 1 else descriptions:
            self._say(f"{text}\n\n")
        self._say(LIMITS)
        return "stop"

    def _description(self, part: Part, transcript: str | None) -> str:
        if part.kind == "image":
            return self._senses.see_picture(part, self._cancelled)
        if part.kind == "video":
            return self._senses.see_clip(part, transcript, self._cancelled)
        return describe_recording(transcript or "")

    def _think(self, transcripts: Sequence[str]) -> EndReason:
        words = user_words(self._message, transcripts)
        if not all(transcripts):
            self._say(NO_WORDS + "\n\n" * bool(words))
        if not words:
            return "stop"
        default = system_prompt(speech=self._speaking is not None)
        thought = self._mind.think(
            turns(self._messages, words, default, self._senses.recall),
            self._say,
            max_tokens=self._options.max_tokens or MAX_TOKENS,
            temperature=self._options.temperature,
            seed=self._options.seed,
            cancelled=self._cancelled,
        )
        if thought.reason == "cancelled":
            raise Stopped
        self._out.put(ReplyStats(thought.prompt_tokens, thought.completion_tokens))
        return thought.reason

    def _say(self, text: str) -> None:
        self._out.put(TextDelta(text))
        if self._speaking is not None:
            self._speaking.feed(text)

    def _finish_speech(self) -> None:
        failure = self._speaking.finish() if self._speaking is not None else None
        if failure is not None:
            self._out.put(TextDelta(f"\n\n(Not all of this could be spoken: {failure})"))


class _Speaking:
    """Turns text into AudioDelta events on a thread of its own."""

    def __init__(self, speech: Speech, outbox: Outbox) -> None:
        self._speech = speech
        self._out = outbox
        self._failure: OmniError | None = None
        self._thread = threading.Thread(target=self._speak, name="builtin-speech", daemon=True)
        self._thread.start()

    def feed(self, text: str) -> None:
        if self._failure is None:
            self._speech.feed(text)

    def finish(self) -> OmniError | None:
        """Waits until the last word is spoken; what went wrong, if anything did. May be called twice."""
        self._speech.finish()
        self._thread.join()
        return self._failure

    def _speak(self) -> None:
        try:
            for delta in self._speech.audio():
                self._out.put(delta)
        except OmniError as error:
            self._failure = error
        except Exception:
            log.exception("the speech failed")
            self._failure = EngineFailed("the speech broke; the log says why.")
