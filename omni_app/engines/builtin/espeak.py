"""eSpeak NG's own voice: plain, in many languages, and a thousand times faster than real time."""

from __future__ import annotations

import ctypes
import functools
import threading

import numpy as np

from omni_app.engines.builtin.pacing import Cancelled
from omni_app.engines.builtin.waveform import Samples, resample, trim
from omni_app.errors import AssetUnavailable, EngineFailed

LANGUAGES = ("en-us", "en-gb", "cmn", "de", "es", "fr", "it", "ja", "ko", "pt-br", "ru")
PREFIX = "espeak-"

_OWN_NAMES = {"en-gb": "en"}
# Names and values of speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

# The library keeps its state in globals. phonemizer loads a copy under another name, so only our own calls matter.
_lock = threading.Lock()


def synthesize(text: str, language: str, cancelled: Cancelled) -> Samples:
    """`text` spoken, 24 kHz; empty when cancelled. Raises AssetUnavailable, EngineFailed."""
    library, rate = _library()
    pieces: list[bytes] = []

    def receive(wave: int | None, count: int, _events: int | None) -> int:
        if wave and count:
            pieces.append(ctypes.string_at(wave, count * 2))
        return int(cancelled())

    encoded = text.encode()
    callback = _CALLBACK(receive)
    with _lock:
        library.espeak_SetSynthCallback(callback)
        failed = library.espeak_SetVoiceByName(_OWN_NAMES.get(language, language).encode())
        failed = failed or library.espeak_Synth(
            encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
    if failed:
        raise EngineFailed(f"eSpeak NG could not speak {language} (its error {failed}); choose another voice.")
    if cancelled() or not pieces:
        return np.zeros(0, np.int16)
    return trim(resample(np.frombuffer(b"".join(pieces), np.int16), rate))


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The initialised library, and the sample rate of its speech in Hz."""
    import espeakng_loader

    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise AssetUnavailable(
            f"eSpeak NG's library cannot be loaded ({error}); run `pip install --force-reinstall espeakng-loader`."
        ) from error
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    data = espeakng_loader.get_data_path().encode()
    rate = int(library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _INITIALIZE_DONT_EXIT))
    if rate <= 0:
        raise AssetUnavailable(
            "eSpeak NG's voice data is missing or damaged; run `pip install --force-reinstall espeakng-loader`."
        )
    return library, rate
