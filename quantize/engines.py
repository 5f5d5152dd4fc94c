"""The original model at work, so that its layers can be watched: Qwen3-Omni answering, or a text model reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from quantize import device
from quantize.checkpoint import Checkpoint
from quantize.samples import Sample
from quantize.speech import Spoken

if TYPE_CHECKING:
    import torch

_TEXT_TOKENS, _FRAMES = 32, 16
"""Length of the answers: the thinker's tokens and the talker's frames of 80 ms."""
_READ_TOKENS = 2048


def load(source: Checkpoint, exact: bool = False) -> torch.nn.Module:
    """The model in the type of its files, or in FP32 if `exact`; on a CUDA device where it fits."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3OmniMoeForConditionalGeneration

    kind = Qwen3OmniMoeForConditionalGeneration if source.is_omni else AutoModelForCausalLM
    own = {"F16": torch.float16, "F32": torch.float32}.get(source.dtype, torch.bfloat16)
    dtype, size = (torch.float32, 2 * source.size) if exact else (own, source.size)
    model = kind.from_pretrained(source.folder, dtype=dtype, device_map=_device(size)).eval()
    loaded: torch.nn.Module = model
    return loaded


def _device(size: int) -> str:
    return "cuda" if device.free() > size * 1.1 else "cpu"


def text_part(model: Any, source: Checkpoint) -> Any:
    """The part that reads text and predicts the next token of it."""
    return model.thinker if source.is_omni else model


def inputs(source: Checkpoint, sample: Sample, tools: Any) -> dict[str, torch.Tensor]:
    """What the model is given for a sample. tools: of `tools_of`."""
    if not source.is_omni:
        return dict(tools(sample.text, return_tensors="pt", truncation=True, max_length=_READ_TOKENS))
    content = [{"type": "image"}] * (sample.image is not None) + [{"type": "audio"}] * (sample.sound is not None)
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": sample.text}]}]
    text = tools.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found = tools(
        text=text,
        images=[sample.image] if sample.image is not None else None,
        audio=[sample.sound] if sample.sound is not None else None,
        return_tensors="pt",
    )
    return dict(found)


def tools_of(source: Checkpoint) -> Any:
    """Tokenizer of a text model, processor of Qwen3-Omni. The latter without video, which would need torchvision."""
    from transformers import AutoTokenizer, Qwen3OmniMoeProcessor, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    if not source.is_omni:
        return tokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class Processor(Qwen3OmniMoeProcessor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            if argument_name == "video_processor":
                return SimpleNamespace
            return super().check_argument_for_proper_class(argument_name, argument)

    Processor.__name__ = "Qwen3OmniMoeProcessor"  # its base looks classes up by this name
    template = source.folder / "chat_template.jinja"
    return Processor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(source.folder),
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2, model_input_names=[]),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(source.folder),
        tokenizer=tokenizer,
        chat_template=template.read_text() if template.exists() else tokenizer.chat_template,
    )


def answer(
    model: Any, source: Checkpoint, given: dict[str, torch.Tensor], tools: Any, speak: bool, frames: int = _FRAMES
) -> Any:
    """Let the model work on one sample: read it (text models), or answer it, aloud if `speak`.

    Returns what generate() does: of a speaking model the token ids, question included, and F32 [1, 1, samples].
    """
    import torch

    torch.manual_seed(0)  # the talker samples its codes; a job taken up again must see the same ones
    given = {name: _placed(value, model) for name, value in given.items()}
    with torch.no_grad():
        if not source.is_omni:
            return model(**given)
        settings: dict[str, Any] = {
            "thinker_max_new_tokens": _TEXT_TOKENS,
            "thinker_eos_token_id": tools.tokenizer.eos_token_id,
            "return_audio": speak,
        }
        if speak:
            voice = next(iter(model.config.talker_config.speaker_id))
            # without a code at all generate() fails in torch.stack
            settings |= {"speaker": voice, "talker_max_new_tokens": frames, "talker_min_new_tokens": 2}
        with _talker_knows_audio(model):
            return model.generate(**given, **settings)


def _placed(value: torch.Tensor, model: Any) -> torch.Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def say(model: Any, source: Checkpoint, tools: Any, sentence: str, frames: int) -> Spoken:
    """Have the model repeat a sentence. frames: of 80 ms, at most."""
    question = inputs(source, Sample(f'Say exactly this sentence and nothing else: "{sentence}"'), tools)
    ids, sound = answer(model, source, question, tools, speak=True, frames=frames)
    said = tools.tokenizer.decode(ids[0, question["input_ids"].shape[1] :], skip_special_tokens=True)
    return Spoken(said.strip(), sound.float().reshape(-1).cpu().numpy())


@contextmanager
def _talker_knows_audio(model: Any) -> Iterator[None]:
    """transformers 5.17's talker reads an audio_config that it has not got when picture and sound come together."""
    talker = getattr(model, "talker", None)
    if talker is None or hasattr(talker.config, "audio_config"):
        yield
        return
    talker.config.audio_config = model.config.thinker_config.audio_config
    try:
        yield
    finally:
        del talker.config.audio_config
