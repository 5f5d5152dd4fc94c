"""Text to speech while the text is still being written: Kokoro where it keeps up with real time, else eSpeak NG."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omni_app.conversation import AudioDelta
from omni_app.engines.builtin import espeak
from omni_app.engines.builtin.assets import KOKORO_MODEL, KOKORO_VOICES, fetch
from omni_app.engines.builtin.clauses import Clause, ClauseSplitter, Ending
from omni_app.engines.builtin.fetching import Progress
from omni_app.engines.builtin.pacing import POLL_SECONDS, Cancelled, Clock, Pace, Turns
from omni_app.engines.builtin.speech_speed import Speed, measured
from omni_app.engines.builtin.waveform import SAMPLE_RATE, Samples, silence
from omni_app.errors import AssetUnavailable, BadRequest
from omni_app.settings import Settings

if TYPE_CHECKING:
    from omni_app.engines.builtin.kokoro import KokoroVoices

KOKORO_NAMES = ("jm_kumo", "jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro")
ESPEAK_NAMES = tuple(espeak.PREFIX + language for language in espeak.LANGUAGES)

_PAUSE_SECONDS: dict[Ending, float] = {"sentence": 0.25, "phrase": 0.1, "word": 0.0}
_ESPEAK_RTF = 0.01
_WARM_UP = "The speech model is being measured with this sentence."


class Speaker:
    """The voices of the builtin engine. Any number of utterances may be spoken at once, each by its own thread."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._loading = threading.Lock()
        self._kokoro: KokoroVoices | None = None
        self._speed = Speed(threads=1, rtf=1.0)
        self._turns = Turns()
        self.voices: tuple[str, ...] = KOKORO_NAMES + ESPEAK_NAMES
        self.default_voice = ESPEAK_NAMES[0]
        self.reason = "The voices are being loaded."

    def load(self, progress: Progress = lambda _: None) -> None:
        """Choose the default voice and make it ready. Blocks for some seconds. Raises AssetUnavailable."""
        espeak.synthesize("ready", espeak.LANGUAGES[0], lambda: False)
        if self._settings.builtin_speech == "espeak":
            self.reason = "eSpeak NG speaks, because OMNI_BUILTIN_SPEECH asks for it."
            return
        try:
            kokoro = self._ready_kokoro(progress)
        except AssetUnavailable as error:
            if self._settings.builtin_speech == "kokoro":
                raise
            self.voices = ESPEAK_NAMES
            self.reason = f"eSpeak NG speaks, because Kokoro is not here: {error}"
            return
        self._choose(kokoro)

    def utterance(self, voice: str | None, cancelled: Cancelled) -> Utterance:
        """One reply's speech. Raises BadRequest for a voice that does not exist."""
        chosen = voice or self.default_voice
        if chosen not in self.voices:
            raise BadRequest(f"There is no voice called {chosen[:50]}; choose one of {', '.join(self.voices)}.")
        rtf = self._speed.rtf if chosen in KOKORO_NAMES else _ESPEAK_RTF
        return Utterance(self, chosen, cancelled, Pace(self._clock, rtf))

    def synthesize(self, text: str, voice: str, cancelled: Cancelled = lambda: False) -> Samples:
        """`text` in one piece; 24 kHz. Blocks. Raises AssetUnavailable, EngineFailed."""
        return self.synthesize_by(self._clock(), text, voice, cancelled)[0]

    def synthesize_by(self, dry_at: float, text: str, voice: str, cancelled: Cancelled) -> tuple[Samples, float]:
        """`text` spoken, and the seconds that took, waiting included; the most urgent `dry_at` is served first."""
        began = self._clock()
        if voice.startswith(espeak.PREFIX):
            samples = espeak.synthesize(text, voice.removeprefix(espeak.PREFIX), cancelled)
            return samples, self._clock() - began
        kokoro = self._ready_kokoro(lambda _: None)
        with self._turns.turn(dry_at, cancelled) as ours:
            samples = kokoro.synthesize(text, voice, cancelled) if ours else silence(0)
        return samples, self._clock() - began

    def close(self) -> None:
        self._kokoro = None

    def _ready_kokoro(self, progress: Progress) -> KokoroVoices:
        """Kokoro, loaded with the number of threads that suits this machine; measures that if it is not known yet."""
        with self._loading:
            if self._kokoro is None:
                paths = [fetch(asset, self._settings.cache_dir, progress) for asset in (KOKORO_MODEL, KOKORO_VOICES)]
                self._kokoro, self._speed = self._load_kokoro(paths[0], paths[1], progress)
            return self._kokoro

    def _load_kokoro(self, model: Path, voices: Path, progress: Progress) -> tuple[KokoroVoices, Speed]:
        from omni_app.engines.builtin.kokoro import KokoroVoices

        loaded: dict[int, KokoroVoices] = {}

        def measure(threads: int) -> float:
            if threads not in loaded:
                progress("Measuring how fast speech can be made on this machine.")
                loaded[threads] = KokoroVoices(model, voices, threads)
                self._rtf(loaded[threads])  # the first run also allocates memory
            return self._rtf(loaded[threads])

        speed = measured(self._settings.cache_dir, measure)
        return loaded.get(speed.threads) or KokoroVoices(model, voices, speed.threads), speed

    def _rtf(self, kokoro: KokoroVoices) -> float:
        began = self._clock()
        samples = kokoro.synthesize(_WARM_UP, KOKORO_NAMES[0], lambda: False)
        return (self._clock() - began) * SAMPLE_RATE / len(samples)

    def _choose(self, kokoro: KokoroVoices) -> None:
        speed = self._speed
        figure = f"one second of speech took {speed.rtf:.2f} s when this machine was measured"
        if speed.keeps_up or self._settings.builtin_speech == "kokoro":
            self.default_voice = KOKORO_NAMES[0]
            kokoro.synthesize("Ready.", self.default_voice, lambda: False)  # the first run also allocates memory
            self.reason = f"Kokoro speaks; {figure}" + ("." if speed.keeps_up else ", so it will stutter.")
            return
        self._kokoro = None
        busy = ", while other programs kept it busy; a later start measures again" if speed.disturbed else ""
        self.reason = (
            f"eSpeak NG speaks, because Kokoro cannot keep up: {figure}{busy}. Its voices can be chosen all the same."
        )


class Utterance:
    """The speech of one reply: one thread feeds text as it comes, another takes the sound."""

    def __init__(self, speaker: Speaker, voice: str, cancelled: Cancelled, pace: Pace) -> None:
        self._speaker = speaker
        self._voice = voice
        self._cancelled = cancelled
        self._pace = pace
        self._splitter = ClauseSplitter()
        self._changed = threading.Condition()

    def feed(self, delta: str) -> None:
        """More of the text. Never blocks for long."""
        with self._changed:
            self._splitter.feed(delta)
            self._changed.notify_all()

    def finish(self) -> None:
        """The text is complete."""
        with self._changed:
            self._splitter.finish()
            self._changed.notify_all()

    def audio(self) -> Iterator[AudioDelta]:
        """Speech clause by clause, each as soon as it is made; ends after the last one, or when cancelled.

        Blocks between clauses, so take it from a worker thread. Raises AssetUnavailable, EngineFailed.
        """
        while (clause := self._next_clause()) is not None:
            samples = self._spoken(clause)
            if self._cancelled():
                return
            if len(samples):
                yield AudioDelta(samples.tobytes(), SAMPLE_RATE)

    def _next_clause(self) -> Clause | None:
        with self._changed:
            while not self._cancelled():
                clause = self._ready_clause()
                if clause is not None or self._splitter.exhausted:
                    return clause
                waiting = self._pace.seconds_to_wait(self._splitter.pending_chars)
                self._changed.wait(min(waiting, POLL_SECONDS) or POLL_SECONDS)
        return None

    def _ready_clause(self) -> Clause | None:
        if not self._pace.started:
            return self._splitter.take_first(by_words=not self._pace.instant)
        hurry = self._pace.must_hurry(self._splitter.pending_chars)
        return self._splitter.take(self._pace.limit_chars(), hurry)

    def _spoken(self, clause: Clause) -> Samples:
        """The clause and the pause after it; no pause at the very end."""
        dry_at = self._pace.dry_at or 0.0
        samples, work_seconds = self._speaker.synthesize_by(dry_at, clause.text, self._voice, self._cancelled)
        if not len(samples):
            return samples
        with self._changed:
            pause = 0.0 if self._splitter.exhausted else _PAUSE_SECONDS[clause.ending]
        samples = np.concatenate([samples, silence(pause)])
        self._pace.record(len(clause.text), len(samples) / SAMPLE_RATE, work_seconds)
        return samples
