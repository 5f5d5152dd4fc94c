"""A conversation as the model's inputs: text through the chat template, media through the model's own processor.

The processor is put together here, because `AutoProcessor` fails as a whole without torchvision, whose published builds
fit only one build of torch. What torchvision would do, cutting clips into patches, is done by the picture processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, Qwen3OmniMoeProcessor, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omni_app.conversation import Message, Part
from omni_app.errors import CheckpointUnusable, MediaRejected
from omni_app.media import audio, video

_FPS = 2.0
"""Pictures of a clip per second, as Qwen's own tools take them."""
_MAX_FRAMES = 64
_CLIP_TOKENS = 8192
"""Most tokens of one clip's pictures; a longer clip is shown in smaller ones."""
_FRAME_TOKENS = 768
_TOKEN_PIXELS = 32 * 32
_END = "<|im_end|>"


class Stopped(Exception):
    """The visitor has left."""


@dataclass(slots=True)
class _Media:
    """The media of a conversation in the order in which its text names them."""

    fps: float
    """Of all clips, as the processor takes only one number: what shows the longest of them in time."""
    interleaved: bool
    """Whether the sound of clips stands between their pictures. transformers cannot do that for some clips only; then
    it follows the pictures as a sound of its own."""
    stopped: Callable[[], bool]
    """Whether nobody waits any more."""
    images: list[Image.Image] = field(default_factory=list)
    clips: list[list[Image.Image]] = field(default_factory=list)
    sounds: list[NDArray[np.float32]] = field(default_factory=list)
    clip_of_sound: list[int | None] = field(default_factory=list)
    """For each sound the clip between whose pictures it stands."""

    @classmethod
    def of(cls, messages: Sequence[Message], stopped: Callable[[], bool]) -> _Media:
        clips = [part for message in messages for part in message.media if part.kind == "video"]
        longest = max((part.seconds or 1 for part in clips), default=1)
        interleaved = bool(clips) and all(part.has_sound for part in clips)
        return cls(min(_FPS, _MAX_FRAMES / longest), interleaved, stopped)

    def take(self, part: Part) -> list[dict[str, str]]:
        """Read one; how the chat template is told of it. Raises Stopped, and OSError or ValueError where it cannot be
        read."""
        self.check()
        path = part.path or Path()
        if part.kind == "image":
            with Image.open(path) as image:
                self.images.append(image.convert("RGB"))
        elif part.kind == "audio":
            self._hear(audio.read_wav(path)[0], None)
        else:
            return self._take_clip(part, path)
        return [{"type": part.kind}]

    def _take_clip(self, part: Part, path: Path) -> list[dict[str, str]]:
        count = min(_MAX_FRAMES, max(2, round((part.seconds or 1) * self.fps)))
        pictures = video.frames(path, count, self.stopped)
        self.check()
        if not pictures:
            raise ValueError("no picture of the clip can be decoded")
        self.clips.append(pictures)
        if not part.has_sound:
            return [{"type": "video"}]
        self._hear(_sound_of(path, self.stopped), len(self.clips) - 1 if self.interleaved else None)
        return [{"type": "video"}] if self.interleaved else [{"type": "video"}, {"type": "audio"}]

    def check(self) -> None:
        if self.stopped():
            raise Stopped

    def _hear(self, sound: NDArray[np.float32], clip: int | None) -> None:
        self.sounds.append(sound)
        self.clip_of_sound.append(clip)


class Reader:
    def __init__(self, folder: Path) -> None:
        """Raises CheckpointUnusable."""
        try:
            self._processor = _processor(folder)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise CheckpointUnusable(
                f"Tokenizer, chat template or preprocessor_config.json in {folder} are missing or damaged; "
                "copy them from the original model."
            ) from error
        self.tokenizer = self._processor.tokenizer
        self.end_token = int(self.tokenizer.convert_tokens_to_ids(_END))
        self._reserved = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)

    def inputs(self, messages: Sequence[Message], stopped: Callable[[], bool]) -> dict[str, Any]:
        """What `generate` wants: tensors of one sequence, and whether clips bring their sound. Raises MediaRejected,
        and Stopped once `stopped` comes true."""
        media = _Media.of(messages, stopped)
        chat = [{"role": message.role, "content": self._content(message, media)} for message in messages]
        media.check()
        text = self.tokenizer.apply_chat_template(
            chat, chat_template=self._processor.chat_template, tokenize=False, add_generation_prompt=True
        )
        made = self._processor(
            text=[text], images=media.images or None, videos=media.clips or None, audio=media.sounds or None,
            audio_from_video_indices=media.clip_of_sound if media.interleaved else None,
            load_audio_from_video=media.interleaved, videos_kwargs={"fps": media.fps}, return_tensors="pt",
        )  # fmt: skip
        return {**made, "use_audio_in_video": media.interleaved}

    def _content(self, message: Message, media: _Media) -> str | list[dict[str, str]]:
        if not message.media:
            return self._plain(message.text)
        return [piece for part in message.parts for piece in self._pieces(part, media)]

    def _pieces(self, part: Part, media: _Media) -> list[dict[str, str]]:
        if part.kind == "text":
            return [{"type": "text", "text": self._plain(part.text)}]
        try:
            return media.take(part)
        except (OSError, ValueError) as error:
            name = part.name or part.kind
            raise MediaRejected(f"{name} cannot be read any more on this machine. Please attach it again.") from error

    def _plain(self, text: str) -> str:
        """Text in which the model's own marks, if somebody writes them, are only letters."""
        for mark in self._reserved:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


def _sound_of(clip: Path, stopped: Callable[[], bool]) -> NDArray[np.float32]:
    """Shape (samples,), 16 kHz; a moment of silence when nothing of it can be decoded."""
    with TemporaryDirectory() as folder:
        wav = video.sound(clip, Path(folder), stopped)
        return np.zeros(audio.RATE, np.float32) if wav is None else audio.read_wav(wav)[0]


def _processor(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return _Processor(
        image_processor=pictures,
        video_processor=ClipPatches(pictures),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
        tokenizer=tokenizer,
        chat_template=_chat_template(folder) or tokenizer.chat_template,
    )


def _chat_template(folder: Path) -> str | None:
    """Of the processor: it stands in a file of its own, as JSON in older folders."""
    if (jinja := folder / "chat_template.jinja").is_file():
        return jinja.read_text()
    if (older := folder / "chat_template.json").is_file():
        return str(json.loads(older.read_text())["chat_template"])
    return None


class _Processor(Qwen3OmniMoeProcessor):  # type: ignore[misc]
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return SimpleNamespace
        return super().check_argument_for_proper_class(argument_name, argument)


class ClipPatches(SimpleNamespace):
    """Pictures of clips as the patches that the vision tower takes, two pictures to a patch (Qwen2VLVideoProcessor)."""

    def __init__(self, pictures: Any) -> None:
        super().__init__(
            merge_size=pictures.merge_size, temporal_patch_size=pictures.temporal_patch_size,
            model_input_names=["pixel_values_videos", "video_grid_thw"],
        )  # fmt: skip
        self._pictures = pictures

    def __call__(self, videos: Sequence[Sequence[Image.Image]], **_: Any) -> dict[str, Any]:
        clips = [self._clip(frames) for frames in videos]
        return {
            "pixel_values_videos": np.concatenate([patches for patches, _ in clips]),
            "video_grid_thw": np.array([grid for _, grid in clips], dtype=np.int64),
        }

    def _clip(self, frames: Sequence[Image.Image]) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
        """Patches [steps * rows * columns, colours * 2 * patch * patch] and the grid (steps, rows, columns)."""
        step = self.temporal_patch_size
        frames = [*frames, *[frames[-1]] * (-len(frames) % step)]
        steps = len(frames) // step
        made = self._pictures(list(frames), size=_frame_size(steps), return_tensors="np")
        rows, columns = made["image_grid_thw"][0][1:]
        # Each picture comes as a clip that stands still: its first moment is taken.
        colours = made["pixel_values"].reshape(steps, step, rows * columns, 3, step, -1)[:, :, :, :, 0]
        return colours.transpose(0, 2, 3, 1, 4).reshape(steps * rows * columns, -1), (steps, int(rows), int(columns))


def _frame_size(steps: int) -> Mapping[str, int]:
    tokens = max(16, min(_FRAME_TOKENS, _CLIP_TOKENS // steps))
    return {"shortest_edge": min(128, tokens) * _TOKEN_PIXELS, "longest_edge": tokens * _TOKEN_PIXELS}
