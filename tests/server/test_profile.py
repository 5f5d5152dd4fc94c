"""The profile for every machine and checkpoint: what holds for all, what holds for each, and whole files to compare."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from omni_app.errors import BadRequest, DoesNotFit
from omni_app.hardware import GIB, MIB
from omni_app.server import budget, fast_stages, fast_start, profile
from omni_app.server.checkpoint import Checkpoint
from omni_app.server.profile import Plan, Wishes, plan
from tests.server.machines import H100, L40S, MACHINES, gpu, machine
from tests.server.model_folder import FORMATS

CheckpointOf = Callable[[str], Checkpoint]
GOLDEN = Path(__file__).parent / "golden"

# Conversations of 16 384 tokens, of 8 wished, that have room: with speech, and text only. 0: refused.
ALL = (8, 8)
ROOM: dict[str, dict[str, tuple[int, int]]] = {
    name: dict(zip(FORMATS, row, strict=True))
    for name, row in {
        # bf16, fp8, w4a16, nvfp4, nvfp4a16, nvfp4-talker
        "h100": ((3, 8), ALL, ALL, ALL, ALL, ALL),
        "h200": (ALL, ALL, ALL, ALL, ALL, ALL),
        "2x80": (ALL, ALL, ALL, ALL, ALL, ALL),
        "thor": (ALL, ALL, ALL, ALL, ALL, ALL),
        "spark": ((7, 8), ALL, ALL, ALL, ALL, ALL),
        "48": ((0, 0), (0, 5), (4, 8), (6, 8), (6, 8), (5, 8)),
        "2x48": ((1, 8), (5, 5), ALL, ALL, ALL, ALL),
        "32": ((0, 0), (0, 0), (0, 6), (0, 5), (0, 5), (1, 5)),
        "24": ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0)),
    }.items()
}
CASES = [
    pytest.param(name, kind, speech, ROOM[name][kind][not speech], id=f"{name}-{kind}-{'speech' if speech else 'text'}")
    for name in MACHINES
    for kind in FORMATS
    for speech in (True, False)
]
FITTING = [case for case in CASES if case.values[3]]


@pytest.mark.parametrize(("name", "kind", "speech", "room"), CASES)
def test_how_many_conversations_fit(checkpoint_of: CheckpointOf, name: str, kind: str, speech: bool, room: int) -> None:
    if room:
        assert plan(MACHINES[name], checkpoint_of(kind), Wishes(speech)).contexts == room
    else:
        with pytest.raises(DoesNotFit, match="does not fit"):
            plan(MACHINES[name], checkpoint_of(kind), Wishes(speech))


@pytest.mark.parametrize(("name", "kind", "speech", "room"), FITTING)
def test_what_holds_for_every_plan(checkpoint_of: CheckpointOf, name: str, kind: str, speech: bool, room: int) -> None:
    found = plan(MACHINES[name], checkpoint_of(kind), Wishes(speech))
    _memory_holds(found)
    _text_is_data_with_reasons(found)
    _stages_hold(found, kind, speech)


def _memory_holds(found: Plan) -> None:
    for index, one in enumerate(found.gpus):
        here = [stage for stage in found.stages if index in stage.devices]
        assert sum(stage.total for stage in here) <= budget.usable(one)
        shares = [found.deploy["stages"][stage.stage]["gpu_memory_utilization"] for stage in here]
        assert sum(shares) < 0.995


def _text_is_data_with_reasons(found: Plan) -> None:
    assert yaml.safe_load(found.text) == found.deploy
    for line in found.text.splitlines():
        assert line.endswith(":") or len(line.partition("# ")[2]) > 3, line


def _stages_hold(found: Plan, kind: str, speech: bool) -> None:
    thinker, *audio = found.deploy["stages"]
    assert thinker["moe_backend"] == ("triton" if kind == "bf16" else "auto")
    assert thinker["compilation_config"]["custom_ops"] == ["+rotary_embedding"]
    assert thinker["skip_mm_profiling"] is True
    assert thinker["kv_cache_memory_bytes"] >= found.contexts * 16384 * 98304 // len(found.stages[0].devices)
    assert [stage["stage_id"] for stage in found.deploy["stages"]] == ([0, 1, 2] if speech else [0])
    assert found.deploy.get("pipeline") == (None if speech else "qwen3_omni_moe_thinker_only")
    if audio:
        extra = found.deploy["connectors"]["connector_of_shared_memory"]["extra"]
        _voice_holds(kind, *audio, 16 * (extra["codec_chunk_frames"] + extra["codec_left_context_frames"]))


def _voice_holds(kind: str, talker: dict[str, Any], code2wav: dict[str, Any], piece_tokens: int) -> None:
    assert talker["moe_backend"] == ("auto" if kind == "nvfp4-talker" else "triton")
    sampling = {"seed": 42, "temperature": 0.9, "top_k": 50, "max_tokens": 4096, "repetition_penalty": 1.05}
    assert talker["default_sampling_params"] == sampling
    assert talker["max_model_len"] == 16384 + 4096
    assert code2wav["max_num_batched_tokens"] == code2wav["max_model_len"] <= 16384
    assert code2wav["max_num_seqs"] * piece_tokens <= code2wav["max_num_batched_tokens"]
    assert code2wav["enable_flashinfer_autotune"] is False  # else a start decodes all batched tokens at once
    nulled = {"quantization_config": None}
    assert talker.get("hf_overrides") == (None if kind in ("bf16", "nvfp4-talker") else nulled)
    assert code2wav.get("hf_overrides") == (None if kind == "bf16" else nulled)


def test_the_plan_for_the_measured_machine_is_near_to_what_was_measured(checkpoint_of: CheckpointOf) -> None:
    """Of 16 users on one H100 the processes held 33 822, 11 810 and 8454 MiB, with 12 and 4 GiB of KV cache."""
    found = plan(MACHINES["h100"], checkpoint_of("nvfp4"), Wishes(users=16))
    held = [stage.total - stage.kv for stage in found.stages]
    measured = [33822 / 1024 - 12, 11810 / 1024 - 4, 8454 / 1024]
    for planned, seen in zip(held, measured, strict=True):
        assert seen - 0.1 <= planned / GIB <= seen + 1.2
    assert found.parallel_start.value


@pytest.mark.parametrize(
    ("shown", "counted", "kind", "wishes"),
    [(79.65, 79.18, "nvfp4", Wishes(users=62, context_tokens=4096)), (95.6, 94.97, "nvfp4", Wishes(users=26))],
)
def test_stages_start_together_only_where_the_server_admits_it(
    checkpoint_of: CheckpointOf, shown: float, counted: float, kind: str, wishes: Wishes
) -> None:
    """vllm-omni 0.30, engine/stage_admission.py, counts with the total of CUDA, which is less than nvidia-smi's."""
    card = gpu("as its driver shows it", shown, (9, 0), taken=shown - counted)
    found = plan(machine(card), checkpoint_of(kind), wishes)
    needed = sum(stage["gpu_memory_utilization"] * counted for stage in found.deploy["stages"]) + 3 * 2 + 1 + 1
    assert found.parallel_start.value <= (needed <= counted)


GOLDENS = {
    "h100-nvfp4": Wishes(),
    "h100-bf16": Wishes(users=2),
    "h200-bf16": Wishes(users=16, context_tokens=32768),
    "2x80-bf16": Wishes(),
    "2x48-bf16": Wishes(users=1),
    "thor-nvfp4": Wishes(users=4),
    "spark-nvfp4-talker": Wishes(users=4),
    "48-w4a16": Wishes(users=4),
    "32-nvfp4": Wishes(speech=False, users=4),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_whole_file(checkpoint_of: CheckpointOf, name: str) -> None:
    """WRITE_GOLDEN=1 in the environment writes the files anew, to be read before they are committed."""
    place, _, kind = name.partition("-")
    text = plan(MACHINES[place], checkpoint_of(kind), GOLDENS[name]).text
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", GOLDENS)
def test_the_installed_server_accepts_the_file(name: str) -> None:
    stage_config = pytest.importorskip("vllm_omni.config.stage_config")
    omni_config = pytest.importorskip("vllm_omni.config.omni_config")
    loaded = stage_config.load_deploy_config(GOLDEN / f"{name}.yaml")
    for stage in loaded.stages:
        assert set(stage.engine_extras) <= omni_config._LLM_STAGE_ENGINE_FIELDS


def test_two_gpus_share_the_work(checkpoint_of: CheckpointOf) -> None:
    stages = plan(MACHINES["2x80"], checkpoint_of("bf16"), Wishes()).deploy["stages"]
    assert [stage["devices"] for stage in stages] == ["0", "1", "1"]
    assert all("tensor_parallel_size" not in stage for stage in stages)
    assert all("pass_config" not in stage.get("compilation_config", {}) for stage in stages)


def test_the_freer_gpu_gets_the_thinker(checkpoint_of: CheckpointOf) -> None:
    two = machine(gpu("H100", 79.18, (9, 0), taken=30), H100)
    stages = plan(two, checkpoint_of("fp8"), Wishes()).deploy["stages"]
    assert [stage["devices"] for stage in stages] == ["1", "0", "0"]


def test_a_thinker_too_large_for_one_gpu_is_spread(checkpoint_of: CheckpointOf) -> None:
    thinker, talker, _ = plan(MACHINES["2x48"], checkpoint_of("bf16"), Wishes(users=1)).deploy["stages"]
    assert (thinker["devices"], thinker["tensor_parallel_size"], talker["devices"]) == ("0,1", 2, "1")
    assert thinker["compilation_config"]["pass_config"] == {"fuse_allreduce_rms": False}
    four = plan(machine(*[gpu("RTX 4090", 23.5, (8, 9))] * 4), checkpoint_of("bf16"), Wishes(False, 1))
    assert four.deploy["stages"][0]["tensor_parallel_size"] == 4


def test_gpus_that_share_the_thinker_over_nvlink_need_room_to_add_up(checkpoint_of: CheckpointOf) -> None:
    """vllm 0.30 has two NCCL communicators there, of 24 channels with buffers of 9.2 MiB, and 96 MiB of its own."""
    many = Wishes(users=32)
    alone, nvlink, pcie = (
        plan(MACHINES[name], checkpoint_of("bf16"), wishes).stages[0]
        for name, wishes in (("h200", many), ("2x80", many), ("2x48", Wishes(False)))
    )
    assert (alone.devices, nvlink.devices, pcie.devices) == ((0,), (0, 1), (0, 1))
    assert 2 * 24 * 9.2 * MIB + 96 * MIB < nvlink.work - alone.work < GIB
    assert pcie.work == alone.work


def test_unified_memory_leaves_25_gb_to_the_system(checkpoint_of: CheckpointOf) -> None:
    thor = MACHINES["thor"]
    assert budget.usable(thor.gpus[0]) == thor.gpus[0].memory_free.value - 25 * 10**9
    found = plan(thor, checkpoint_of("nvfp4"), Wishes())
    assert found.deploy["stages"][0]["mm_processor_cache_gb"] == 1
    assert any("share one memory" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("name", "kind", "kernel"),
    [
        ("h100", "nvfp4", "Marlin, weight-only"),
        ("48", "nvfp4", "Marlin, weight-only"),
        ("spark", "nvfp4", "native FP4 (W4A4)"),
        ("32", "nvfp4-talker", "native FP4 (W4A4)"),
        ("thor", "nvfp4", "native FP4 (CUTLASS), or else Marlin"),
        ("spark", "nvfp4a16", "Marlin, weight-only"),
        ("h100", "w4a16", "Marlin, weight-only"),
        ("48", "fp8", "native FP8"),
        ("h100", "bf16", "BF16 (Triton for the experts)"),
    ],
)
def test_the_expected_kernel(checkpoint_of: CheckpointOf, name: str, kind: str, kernel: str) -> None:
    speech = ROOM[name][kind][0] > 0
    assert plan(MACHINES[name], checkpoint_of(kind), Wishes(speech)).kernel.value == kernel


def test_fp8_on_ampere_is_unpacked(checkpoint_of: CheckpointOf) -> None:
    a100 = machine(gpu("NVIDIA A100", 79.2, (8, 0)))
    assert plan(a100, checkpoint_of("fp8"), Wishes()).kernel.value == "Marlin, weight-only"


@pytest.mark.parametrize(
    ("name", "kind", "wishes", "way_out"),
    [
        ("48", "bf16", Wishes(), "an NVFP4 thinker, which"),
        ("48", "fp8", Wishes(), "text only (--no-speech)"),
        ("32", "bf16", Wishes(), "NVFP4 thinker (`python -m quantize` makes one) and text only"),
        ("32", "w4a16", Wishes(), "a context of 2,048 tokens (--context 2048)"),
        ("24", "nvfp4", Wishes(), "text only and a context of 8,192 tokens (--no-speech --context 8192)"),
    ],
)
def test_a_refusal_shows_the_sum_and_the_way_out(
    checkpoint_of: CheckpointOf, name: str, kind: str, wishes: Wishes, way_out: str
) -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(MACHINES[name], checkpoint_of(kind), wishes)
    message = str(caught.value)
    assert way_out in message
    assert "weights" in message
    assert f"{MACHINES[name].gpus[0].name} has {budget.usable(MACHINES[name].gpus[0]) / GIB:.1f} to use" in message


def test_every_way_out_that_is_named_works(checkpoint_of: CheckpointOf) -> None:
    plan(MACHINES["48"], checkpoint_of("nvfp4"), Wishes())
    plan(MACHINES["48"], checkpoint_of("fp8"), Wishes(speech=False))
    plan(MACHINES["32"], checkpoint_of("nvfp4"), Wishes(speech=False))
    plan(MACHINES["32"], checkpoint_of("w4a16"), Wishes(context_tokens=2048))
    plan(MACHINES["24"], checkpoint_of("nvfp4"), Wishes(speech=False, context_tokens=8192))


def test_memory_that_other_programs_hold(checkpoint_of: CheckpointOf) -> None:
    busy = machine(gpu("H100", 79.18, (9, 0), taken=20))
    assert "Other programs hold 20.0 GiB" in plan(busy, checkpoint_of("nvfp4"), Wishes()).warnings[0]
    full = machine(gpu("H100", 79.18, (9, 0), taken=60))
    with pytest.raises(DoesNotFit, match="ending the other programs"):
        plan(full, checkpoint_of("nvfp4"), Wishes())


def test_warnings_say_what_is_scarce(checkpoint_of: CheckpointOf) -> None:
    found = plan(MACHINES["h100"], checkpoint_of("bf16"), Wishes())
    assert "room for 3 of 8 conversations" in found.warnings[0]
    assert "without CUDA graphs" in found.warnings[1]
    assert not found.parallel_start.value
    text_only = plan(MACHINES["24"], checkpoint_of("nvfp4"), Wishes(speech=False, users=1, context_tokens=8192))
    assert text_only.warnings == ("Memory is short: prompts are read in smaller steps, which is slower.",)
    assert "on NVIDIA GeForce RTX 4090.\n# For one user, 8,192" in text_only.text
    poor = dataclasses.replace(MACHINES["h100"], ram_available=dataclasses.replace(H100.memory_free, value=8 * GIB))
    assert "starts are slow" in plan(poor, checkpoint_of("nvfp4"), Wishes()).warnings[0]
    idle = plan(machine(L40S, L40S), checkpoint_of("nvfp4"), Wishes(speech=False))
    assert "GPU 1 (NVIDIA L40S) is not used" in idle.warnings[0]
    assert plan(MACHINES["h100"], checkpoint_of("nvfp4"), Wishes()).warnings == ()


def test_what_cannot_be_asked_for(checkpoint_of: CheckpointOf) -> None:
    with pytest.raises(BadRequest, match="at least one user"):
        Wishes(users=0)
    with pytest.raises(BadRequest, match="at most 256 users"):
        Wishes(users=257)
    with pytest.raises(BadRequest, match="no room to talk"):
        Wishes(context_tokens=100)
    with pytest.raises(BadRequest, match="65,536 tokens"):
        plan(MACHINES["h100"], checkpoint_of("nvfp4"), Wishes(context_tokens=65537))
    mute = dataclasses.replace(checkpoint_of("nvfp4"), speaks=False)
    with pytest.raises(BadRequest, match="--no-speech"):
        plan(MACHINES["h100"], mute, Wishes())
    assert len(plan(MACHINES["h100"], mute, Wishes(speech=False)).stages) == 1


def test_machines_without_a_usable_gpu(checkpoint_of: CheckpointOf) -> None:
    none = dataclasses.replace(machine(), gpus_reason="nvidia-smi is not installed")
    with pytest.raises(DoesNotFit, match=r"no CUDA device here \(nvidia-smi is not installed\)"):
        plan(none, checkpoint_of("nvfp4"), Wishes())
    with pytest.raises(DoesNotFit, match=r"compute capability 7\.5"):
        plan(machine(gpu("T4", 200, (7, 5))), checkpoint_of("nvfp4"), Wishes())
    unknown = plan(machine(gpu("Mystery", 80, None)), checkpoint_of("nvfp4"), Wishes())
    assert unknown.kernel.value == "unknown"
    assert "must be 8.0 or newer" in unknown.warnings[0]


@pytest.mark.parametrize(("name", "users", "pieces"), [("h100", 16, 16), ("h200", 24, 16), ("48", 8, 7), ("48", 4, 4)])
def test_no_piece_of_speech_is_cut_at_the_end_of_a_step(
    checkpoint_of: CheckpointOf, name: str, users: int, pieces: int
) -> None:
    found = plan(MACHINES[name], checkpoint_of("nvfp4"), Wishes(users=users))
    assert [stage["max_num_seqs"] for stage in found.deploy["stages"]] == [users, users, pieces]


def test_no_more_speech_is_decoded_at_once_than_there_is_memory_for(checkpoint_of: CheckpointOf) -> None:
    """A CUDA graph takes 12.6 MiB for each frame of the largest; what has none takes as much again beside them."""
    frames = budget.NEW_FRAMES + budget.FRAMES_AGAIN
    for users in (2, 12, 16, 24, 64):
        found = plan(MACHINES["h200"], checkpoint_of("nvfp4"), Wishes(users=users))
        graphs = fast_stages.crowds(found.deploy["stages"][2]["max_num_seqs"], frames)
        answers = max(count for count, _ in graphs)
        assert answers == found.deploy["stages"][2]["max_num_seqs"]
        assert 0.5 * GIB + answers * frames * 12.6 * MIB < found.stages[2].work


def test_the_longest_context(checkpoint_of: CheckpointOf) -> None:
    thinker, talker, _ = plan(MACHINES["h200"], checkpoint_of("nvfp4"), Wishes(context_tokens=65536)).deploy["stages"]
    assert (thinker["max_model_len"], talker["max_model_len"]) == (65536, 65536)


def test_table_sentence_flags_and_environment(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    found = plan(MACHINES["h100"], checkpoint_of("nvfp4"), Wishes())
    header, thinker, *_, last = found.table()
    assert header.split() == ["GiB", "GPU", "weights", "work", "KV", "sum"]
    assert thinker.split()[:3] == ["thinker", "0", "19.1"]
    assert last.startswith("GPU 0: ")
    assert found.memory.startswith("Planned: thinker ")
    assert found.flags[0] == "--omni"
    environment = profile.environment(tmp_path, 100)
    kept = [value for value in environment.values() if value.startswith(str(tmp_path))]
    assert len(kept) == len(set(kept)) == 5
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["VLLM_ALLREDUCE_USE_FLASHINFER"] == "0"
    hindered = {"PYTHONDONTWRITEBYTECODE": "1", **environment}
    asked = [sys.executable, "-c", "import sys; print(sys.dont_write_bytecode)"]
    assert subprocess.check_output(asked, env=hindered, text=True).strip() == "False"
    assert environment["VLLM_MAX_AUDIO_CLIP_FILESIZE_MB"] == "100"


TOGETHER = ["parallel", "no-locks", "warm-up-experts"]
ALWAYS = ["tokenizer-once", "early-inputs", "no-sampler-warm-up", "no-request-tables"]


@pytest.mark.parametrize(
    ("name", "kind", "wishes", "switches"),
    [
        ("h100", "nvfp4", Wishes(), [*TOGETHER, "share-layers", "small-predictor", "crowd-graphs", *ALWAYS]),
        ("h100", "nvfp4", Wishes(users=1), [*TOGETHER, "share-layers", "small-predictor", *ALWAYS]),
        ("h100", "bf16", Wishes(), ["share-layers", *ALWAYS]),
        ("h100", "nvfp4", Wishes(speech=False), ["share-layers", "no-states", *ALWAYS]),
        ("h100", "nvfp4", Wishes(fast_start=False), []),
    ],
)
def test_a_quick_start_takes_what_fits(
    checkpoint_of: CheckpointOf, name: str, kind: str, wishes: Wishes, switches: list[str]
) -> None:
    found = plan(MACHINES[name], checkpoint_of(kind), wishes)
    assert [switch.value for switch in found.switches] == switches
    assert set(switches) <= set(fast_start.NAMES)
    assert all(f"# Quick start: {switch.value} ({switch.reason})." in found.text for switch in found.switches)
