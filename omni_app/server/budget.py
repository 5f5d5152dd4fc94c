"""How much memory each stage of the model takes, and how many whole contexts that leaves room for.

Constants were measured on one H100 with vLLM-Omni 0.30.0 and an NVFP4 thinker (benchmarks/results); what other cards
and formats need is this arithmetic, not a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omni_app.hardware import GIB, MIB, Gpu
from omni_app.server.checkpoint import Checkpoint, Decoder
from omni_app.server.parts import CODE2WAV, TALKER, THINKER

THINKER_STAGE, TALKER_STAGE, CODE2WAV_STAGE = 0, 1, 2
NAMES = ("thinker", "talker", "code2wav")
TALKER_FRAMES = 4096
"""Longest speech of one answer: 80 ms each, so 5.5 minutes."""

NEW_FRAMES, FRAMES_AGAIN = 10, 25
"""Of a piece of speech after the first: those to be heard, and those before them that are decoded once more."""
PIECE_TOKENS = (NEW_FRAMES + FRAMES_AGAIN) * 16
"""Of code2wav for such a piece."""
PIECES_AT_ONCE = 16
"""Most pieces that code2wav decodes in one step, which its memory was measured with and its CUDA graphs end at."""

KEPT_FREE = GIB
"""Of a card with its own memory, for fragmentation and for what the desktop takes."""
KEPT_FREE_UNIFIED = 25 * 10**9
"""Of a memory shared with the system: for the system, the app, and the weight files that pass through its cache."""

_PROCESS = int(0.7 * GIB)  # CUDA context and libraries of one process
_MEDIA = GIB  # encoders at work on the largest picture or clip; 0.9 GiB in vLLM's own profiling
_THINKER_BUFFERS, _TALKER_BUFFERS = int(0.25 * GIB), int(0.1 * GIB)
_THINKER_PER_TOKEN, _TALKER_PER_TOKEN = (
    118 * 1024,
    51 * 1024,
)  # activations per batched token: 0.92 and 0.39 GiB at 8192
_THINKER_GRAPHS, _TALKER_GRAPHS = 123 * MIB, 164 * MIB
_PROMPT_GRAPHS = 72 * MIB  # of thinker and talker each
_CODE2WAV_GRAPHS = int(4.2 * GIB)
_CODE2WAV_EAGER = int(1.5 * GIB)  # estimated, not measured
_CODE2WAV_PER_PIECE = 195 * MIB
_BLOCK_TOKENS = 64  # room for vLLM's blocks of 16 tokens and its spare one
NVLINKED = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities of the cards that servers join by NVLink."""
_BUFFERS_OF_NVLINK = int(0.8 * GIB)
"""Of each such card that adds up with others: NCCL twice (tensor and expert parallel) with 9.2 MiB for each of some 24
channels, vLLM's own 96 MiB, and what lies between. Counted in their code, not measured; over PCIe it is a tenth."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How freely the stages may use memory for speed."""

    batched_tokens: int
    """Of thinker and talker in one step."""
    code2wav_tokens: int
    """Of code2wav in one step: whole pieces of speech."""
    code2wav_graphs: bool
    prompt_graphs: bool
    """CUDA graphs of thinker and talker for whole prompts, not only for one token of each answer."""


FULL = Effort(8192, 16384, code2wav_graphs=True, prompt_graphs=True)
"""As measured."""
SPARING = Effort(2048, 4096, code2wav_graphs=False, prompt_graphs=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which GPUs the stages are on, by index."""

    thinker: tuple[int, ...]
    """Several for tensor parallel."""
    audio: int | None
    """Talker and code2wav; None for text only."""
    nvlinked: bool = False
    """Whether the thinker's GPUs add up over NVLink."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What one stage takes on each of its GPUs, in bytes."""

    stage: int
    devices: tuple[int, ...]
    weights: int
    work: int
    """Process, activations, CUDA graphs, media encoders."""
    context: int
    """KV cache of one conversation at full length."""
    contexts: int = 0
    """How many of those it gets."""

    @property
    def name(self) -> str:
        return NAMES[self.stage]

    @property
    def fixed(self) -> int:
        return self.weights + self.work

    @property
    def kv(self) -> int:
        return self.context * self.contexts

    @property
    def total(self) -> int:
        return self.fixed + self.kv


def usable(gpu: Gpu) -> int:
    """Bytes that the stages may share on this GPU."""
    return max(gpu.memory_free.value - (KEPT_FREE_UNIFIED if gpu.unified.value else KEPT_FREE), 0)


def talker_tokens(context: int, decoder: Decoder) -> int:
    """Its prompt is the user's side of the conversation, and each frame of speech is a token more."""
    return min(context + TALKER_FRAMES, decoder.positions)


def stages(checkpoint: Checkpoint, layout: Layout, effort: Effort, context: int, users: int) -> list[StageMemory]:
    """What each stage takes, with no context yet."""
    share = len(layout.thinker)
    buffers = _BUFFERS_OF_NVLINK if share > 1 and layout.nvlinked else 0
    graphs = _PROMPT_GRAPHS if effort.prompt_graphs else 0
    thinker = StageMemory(
        THINKER_STAGE, layout.thinker, checkpoint.size(THINKER) // share,
        _PROCESS + _MEDIA + _THINKER_BUFFERS + _THINKER_GRAPHS + buffers + graphs
        + effort.batched_tokens * _THINKER_PER_TOKEN,
        _context(checkpoint.thinker, context, share),
    )  # fmt: skip
    if layout.audio is None or checkpoint.talker is None:
        return [thinker]
    talker = StageMemory(
        TALKER_STAGE, (layout.audio,), checkpoint.size(TALKER),
        _PROCESS + _TALKER_BUFFERS + _TALKER_GRAPHS + graphs + effort.batched_tokens * _TALKER_PER_TOKEN,
        _context(checkpoint.talker, talker_tokens(context, checkpoint.talker), 1),
    )  # fmt: skip
    growth = min(users, PIECES_AT_ONCE) * _CODE2WAV_PER_PIECE
    work = _PROCESS + (_CODE2WAV_GRAPHS + growth if effort.code2wav_graphs else _CODE2WAV_EAGER)
    return [thinker, talker, StageMemory(CODE2WAV_STAGE, (layout.audio,), checkpoint.size(CODE2WAV), work, 0)]


def _context(decoder: Decoder, tokens: int, share: int) -> int:
    """KV cache of one conversation; GPUs that share the model share its KV heads, as far as there are enough."""
    return decoder.kv_bytes_per_token // min(share, decoder.kv_heads) * (tokens + _BLOCK_TOKENS)


def contexts_that_fit(taken: Sequence[StageMemory], gpus: Sequence[Gpu]) -> int:
    """How many conversations at full length all GPUs have room for; less than 1 when it cannot be done."""
    fits: list[int] = []
    for index, gpu in enumerate(gpus):
        here = [stage for stage in taken if index in stage.devices]
        left = usable(gpu) - sum(stage.fixed for stage in here)
        if left < 0:
            return 0
        if per_context := sum(stage.context for stage in here):
            fits.append(left // per_context)
    return min(fits, default=0)
