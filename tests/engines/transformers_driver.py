"""What the tests of the transformers engine run in its own environment: `python transformers_driver.py STEP MODEL ...`.

Each step prints one line of JSON. MODEL is a tiny random Qwen3-Omni with every part, made by the step `make`.
"""

from __future__ import annotations

import asyncio
import json
import pkgutil
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from omni_app.conversation import AudioDelta, Message, Part, ReplyEnd, ReplyOptions, ReplyStats, TextDelta
from omni_app.engines.hf import loading, sizes
from omni_app.engines.hf_transformers import TransformersEngine
from omni_app.errors import OmniError
from omni_app.settings import Settings
from tests.quantize import tiny_omni

ASSETS = Path(__file__).parents[2] / "assets"
PICTURE = Part("image", path=ASSETS / "sign.png")
SOUND = Part("audio", path=ASSETS / "question.wav")
CLIP = Part("video", path=ASSETS / "clip.mp4", seconds=4, has_sound=True)
MUTE = Part("video", path=ASSETS / "clip.mp4", seconds=3)
AUDIO_BRANCH = "{% elif c['type'] == 'audio' %}"
VIDEO_BRANCH = "{% elif c['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"


def make(model: Path) -> object:
    tiny_omni.main(model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace(AUDIO_BRANCH, VIDEO_BRANCH + AUDIO_BRANCH))
    return {}


def load(model: Path, precision: sizes.Precision, talker: bool = True) -> loading.Loaded:
    return loading.load(model, precision, talker, lambda line: None)


def quantization(model: Path, precision: sizes.Precision) -> object:
    """What is in 4 bits, what is exactly as it was, and what the experts answer compared with unpacked weights."""
    from bitsandbytes.nn import Params4bit

    whole, packed = load(model, "bf16"), load(model, precision)
    original = dict(whole.model.named_parameters())
    kept = {name: one for name, one in packed.model.named_parameters() if not isinstance(one, Params4bit)}
    return {
        "estimate": sizes.estimate([(name, tuple(one.shape)) for name, one in original.items()], precision),
        "in_memory": packed.after, "before": packed.before, "bf16_in_memory": whole.after,
        "quantized": sorted(original.keys() - kept.keys()),
        "changed": [name for name, one in kept.items() if not torch.equal(one, original[name])],
        "experts": experts(whole.model, packed.model), "logits": logits(whole.model, packed.model),
    }  # fmt: skip


def experts(whole: Any, packed: Any) -> dict[str, float]:
    """Largest distance of packed experts, for few and for many tokens, from transformers' own code on the same weights
    unpacked; and the relative error that quantization made of these weights."""
    from omni_app.engines.hf.four_bit import unpacked

    plain = whole.thinker.model.language_model.layers[0].mlp.experts
    mine = packed.thinker.model.language_model.layers[0].mlp.experts
    every = torch.arange(plain.num_experts)
    weights = {name: unpacked(getattr(mine, name), every) for name in ("gate_up_proj", "down_proj")}
    errors = [
        float((weights[name] - getattr(plain, name)).norm() / getattr(plain, name).norm())
        for name in weights
    ]  # fmt: skip
    before = {name: getattr(plain, name).data for name in weights}
    for name, weight in weights.items():
        getattr(plain, name).data = weight
    torch.manual_seed(0)
    far = {}
    with torch.no_grad():
        for kind, tokens in (("few", 3), ("many", 60)):
            hidden = torch.randn(tokens, plain.hidden_dim, dtype=torch.bfloat16)
            index = torch.stack([torch.randperm(plain.num_experts)[:2] for _ in range(tokens)])
            share = torch.rand(tokens, 2, dtype=torch.bfloat16)
            expected = plain(hidden, index, share)
            far[kind] = float((mine(hidden, index, share) - expected).abs().max() / expected.abs().max())
    for name, weight in before.items():
        getattr(plain, name).data = weight
    return {**far, "weight_error": max(errors)}


def logits(whole: Any, packed: Any) -> float:
    """Cosine of the thinker's logits, BF16 and 4 bits."""
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        one, other = (model.thinker(input_ids=ids).logits.float().flatten() for model in (whole, packed))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def upstream(model: Path) -> object:
    """What transformers' own BitsAndBytes quantizes, by part."""
    from transformers import BitsAndBytesConfig, Qwen3OmniMoeForConditionalGeneration

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    made = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        model, dtype=torch.bfloat16, quantization_config=config, device_map={"": "cpu"}
    )
    return sorted({sizes.part_of(name) for name, one in made.named_parameters() if one.dtype == torch.uint8})


def clip_patches(model: Path) -> object:
    """Patches of clips: one that stands still against the picture itself, one that moves against its pictures."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from omni_app.engines.hf.prompt import ClipPatches

    pictures = Qwen2VLImageProcessorPil.from_pretrained(model)
    red, blue = (Image.new("RGB", (448, 320), colour) for colour in ("red", "blue"))
    still, moving, odd = (
        ClipPatches(pictures)([frames]) for frames in ([red, red], [red, blue], [red, red, blue])
    )  # fmt: skip
    own = pictures([red], size={"shortest_edge": 1024, "longest_edge": 10**6})
    halves = moving["pixel_values_videos"].reshape(-1, 3, 2, 256)
    return {
        "still": bool((still["pixel_values_videos"] == own["pixel_values"]).all()),
        "grids": [made["video_grid_thw"].tolist() for made in (still, moving, odd)],
        "red_then_blue": [halves[:, 0, 0].min() > 0, halves[:, 2, 0].max() < 0, halves[:, 2, 1].min() > 0],
    }


def engine_of(model: Path, precision: sizes.Precision = "bf16", talker: bool = True) -> TransformersEngine:
    return TransformersEngine(
        Settings(transformers_model=str(model), transformers_precision=precision, transformers_talker=talker)
    )


async def reply(engine: TransformersEngine, *parts: Part, text: str = "Hello", **options: Any) -> dict[str, Any]:
    events = [event async for event in engine.reply([Message.of("user", text, *parts)], ReplyOptions(**options))]
    kinds = "".join(type(event).__name__[0] for event in events)
    spoken = sum(event.seconds for event in events if isinstance(event, AudioDelta))
    stats = next(event for event in events if isinstance(event, ReplyStats))
    assert isinstance(events[-1], ReplyEnd)
    return {
        "kinds": kinds, "text": "".join(event.text for event in events if isinstance(event, TextDelta)),
        "seconds": spoken, "prompt": stats.prompt_tokens, "tokens": stats.completion_tokens, "end": events[-1].reason,
    }  # fmt: skip


async def refused(engine: TransformersEngine, **options: Any) -> str:
    try:
        await reply(engine, **options)
    except OmniError as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def cancelled(engine: TransformersEngine) -> bool:
    """Whether the work has ended, and the model stands still, once an endless answer has been left."""
    async with aclosing(engine.reply([Message.of("user", "Go on")], ReplyOptions(max_tokens=100_000))) as events:
        await anext(events)
        layer = engine._ready().model.thinker.model.language_model.layers[0]
        began = time.monotonic()
    print(f"left after {time.monotonic() - began:.3f} s", file=sys.stderr)
    ended, passes = engine._outbox is None, list[object]()
    with layer.register_forward_pre_hook(lambda module, inputs: passes.append(inputs)):
        await asyncio.sleep(0.5)
    return ended and not passes


async def left_while_reading(engine: TransformersEngine) -> list[int]:
    """How many pictures of a clip are still decoded, and how many pieces of its sound, by a reply that is left at the
    first of them."""
    return [
        await _left_at(engine, "omni_app.media.video._image", MUTE),
        await _left_at(engine, "omni_app.media.audio.WavWriter.write", CLIP),
    ]


async def _left_at(engine: TransformersEngine, step: str, clip: Part) -> int:
    real, calls = pkgutil.resolve_name(step), 0

    def leave(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        assert engine._outbox is not None
        engine._outbox.cancelled.set()
        return real(*arguments)

    with patch(step, leave):
        events = [event async for event in engine.reply([Message.of("user", "Hello", clip)], ReplyOptions())]
    assert events == []
    return calls


async def queued(engine: TransformersEngine) -> str:
    """What the status says while a second reply waits."""
    first = engine.reply([Message.of("user", "Go on")], ReplyOptions(max_tokens=100_000))
    await anext(first)
    second = asyncio.create_task(reply(engine, speech=False, max_tokens=2))
    await asyncio.sleep(0)
    said = engine.status().why
    await first.aclose()
    assert (await second)["tokens"] == 2
    assert "waits" not in engine.status().why
    return said


async def _replies(model: Path) -> object:
    engine = engine_of(model)
    before = engine.status().ready
    await engine.start()
    status = engine.status()
    short = {"speech": False, "max_tokens": 3}
    facts = {
        "ready": [before, status.ready], "why": status.why, "voices": status.voices, "speaks": status.speaks,
        "spoken": await reply(engine, PICTURE, SOUND, CLIP, max_tokens=2, voice="ethan"),
        "text": await reply(engine, **short), "again": await reply(engine, **short),
        "marks": await reply(engine, text="<|im_end|><|image_pad|>", **short),
        "picture": await reply(engine, PICTURE, **short), "sound": await reply(engine, SOUND, **short),
        "clip": await reply(engine, CLIP, **short), "mute": await reply(engine, MUTE, **short),
        "mixed": await reply(engine, CLIP, MUTE, SOUND, **short),
        "sampled": [await reply(engine, temperature=1.5, seed=seed, **short) for seed in (1, 1, 2)],
        "still": await cancelled(engine), "reading": await left_while_reading(engine), "queued": await queued(engine),
        "voice": await refused(engine, voice="nobody"), "tokens": await refused(engine, max_tokens=0),
        "long": await refused(engine, text="a b " * 40_000, speech=False),
    }  # fmt: skip
    await engine.close()
    await engine.close()
    return {**facts, "closed": await refused(engine)}


def replies(model: Path) -> object:
    return asyncio.run(_replies(model))


def silent(model: Path) -> object:
    """An engine whose voice is left out."""

    async def ask() -> object:
        engine = engine_of(model, "nf4", talker=False)
        await engine.start()
        said = await reply(engine, max_tokens=2)
        status = engine.status()
        await engine.close()
        return {"speaks": status.speaks, "why": status.why, "reply": said}

    return asyncio.run(ask())


def trouble(model: Path, precision: sizes.Precision = "bf16") -> object:
    """The sentence with which a folder is refused."""

    async def start() -> str:
        engine = engine_of(model, precision)
        try:
            await engine.start()
        except OmniError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await engine.close()
        return ""

    return asyncio.run(start())


def several(model: Path, *steps: str) -> dict[str, object]:
    """What each step found, `name` or `name:argument`: most of a process's time goes into its imports."""
    found = {}
    for step in steps:
        name, *more = step.split(":")
        found[step] = globals()[name](model, *more)
    return found


if __name__ == "__main__":
    step, folder, *more = sys.argv[1:]
    print(json.dumps(globals()[step](Path(folder), *more), default=bool))
