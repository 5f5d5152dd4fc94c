"""What the recorded start-up logs tell, and what damaged ones cannot break."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from omni_app.server import log, process
from omni_app.server.log import Follower, StartupLog
from omni_app.server.state import ServerFolder, ServerState
from tests.server.fake_vllm import LOGS


def told(name: str) -> StartupLog:
    startup = StartupLog(clock=lambda: 1000.0)
    with gzip.open(LOGS / f"{name}.log.gz", "rt") as lines:
        for line in lines:
            startup.feed(line.rstrip("\n"))
    return startup


def test_a_warm_start_in_phases_and_seconds_of_the_logs_own_clock() -> None:
    startup = told("vllm026_warm_ready")
    thinker, talker, code2wav = startup.stages
    assert [stage.phase for stage in startup.stages] == ["ready"] * 3
    assert thinker.seconds == {
        "importing": 40, "loading": 22, "profiling": 19, "compiling": 3, "warming": 0, "capturing": 4
    }  # fmt: skip
    assert (thinker.weights_gib, thinker.room_tokens, thinker.pid) == (19.28, 160_672, 3950)
    assert (talker.weights_gib, talker.room_tokens, talker.pid) == (6.26, 657_792, 4377)
    assert (code2wav.weights_gib, code2wav.room_tokens, code2wav.pid) == (0.47, None, 4788)
    assert startup.kernels == ["MarlinNvFp4LinearKernel", "MARLIN"]
    assert thinker.words(0.0).startswith("thinker: ready (19.3 GiB of weights, room for 160,672 tokens, ")


FP8 = (  # as vllm 0.30.0 wrote them on an H100
    "Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8",
    "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'FLASHINFER'].",
    "Using VLLM_CUTLASS Fp8 MoE backend out of potential backends: ['AITER', 'FLASHINFER_TRTLLM', 'VLLM_CUTLASS'].",
    "Using MoEPrepareAndFinalizeNoDPEPModular",
    "Using TRITON Unquantized MoE backend out of potential backends: ['FlashInfer TRTLLM', 'TRITON'].",
)


def test_the_kernels_of_fp8_are_told() -> None:
    startup = StartupLog()
    startup.feed("(APIServer pid=13969) INFO 11-24 02:03:29 [OmniEngine] Launching Orchestrator thread with 1 stages")
    for line in FP8:
        startup.feed(f"(StageEngineCoreProc_stage0_replica0 pid=14093) INFO 11-24 02:03:54 [fp8.py:438] {line}")
    assert startup.kernels == ["CutlassFP8ScaledMMLinearKernel", "VLLM_CUTLASS"]


@pytest.mark.parametrize(
    ("path", "cold"),
    [
        (LOGS / "vllm026_warm_ready.log.gz", False),
        (LOGS / "vllm026_cold_init_timeout.log.gz", True),
        (LOGS.parent / "vllm_omni_0_30/startup_cold.log.gz", True),
        (LOGS.parent / "vllm_omni_0_30/startup_warm.log.gz", False),
    ],
)
def test_a_cold_start_is_told_from_a_warm_one(path: Path, cold: bool) -> None:
    startup = StartupLog()
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        startup.feed(line)
    assert startup.compiled is cold


def test_a_start_of_0_30_that_ended_early() -> None:
    thinker, talker, code2wav = told("vllm030_thinker_then_stopped").stages
    assert thinker.phase == "ready"
    assert thinker.seconds == {"importing": 50, "loading": 27, "profiling": 158, "warming": 103}
    assert talker.words(1012.0) == "talker: starting Python, 12 s"
    assert code2wav.words(1012.0) == "code2wav: waiting for its turn"


@pytest.mark.parametrize(("name", "loading", "capturing"), [("startup_cold", 27, 3), ("startup_warm", 23, 4)])
def test_stages_that_start_side_by_side(name: str, loading: int, capturing: int) -> None:
    startup = StartupLog(clock=lambda: 1000.0)
    with gzip.open(LOGS.parent / f"vllm_omni_0_30/{name}.log.gz", "rt") as lines:
        for line in lines:
            startup.feed(line.rstrip("\n"))
    thinker, talker, code2wav = startup.stages
    assert [stage.phase for stage in startup.stages] == ["ready"] * 3
    assert (thinker.seconds["loading"], thinker.seconds["capturing"]) == (loading, capturing)
    assert [stage.weights_gib for stage in startup.stages] == [19.28, 6.26, 0.47]
    assert (thinker.room_tokens, talker.room_tokens, code2wav.room_tokens) == (131_072, 209_712, None)


def test_two_workers_of_one_stage_are_that_stage() -> None:
    thinker = told("vllm026_wrong_tensor_parallel").stages[0]
    assert thinker.phase == "importing"


def test_workers_are_told_from_the_stages_that_start_beside_them() -> None:
    """Prefixes as vllm/v1/executor/multiproc_executor.py of vllm 0.30 makes them."""
    startup = StartupLog()
    startup.feed("Launching Orchestrator thread with 3 stages")
    for who, said in (
        ("StageEngineCoreProc_stage1_replica0 pid=2", "Initializing a V1 LLM engine (v0.30.0) with config:"),
        ("StageEngineCoreProc_stage0_replica0 pid=1", "DP group leader: node_rank=0, world_size=2, local_world_size=2"),
        ("StageEngineCoreProc_stage1_replica0 pid=2", "Starting to load model /m..."),
        ("Worker_TP0 pid=4", "Starting to load model /m..."),
        ("StageEngineCoreProc_stage1_replica0 pid=2", "Model loading took 6.26 GiB memory and 20.1 seconds"),
        ("Worker pid=5", "nothing that is known"),
        ("Worker_TP0_EP0 pid=4", "Model loading took 29.61 GiB memory and 29.5 seconds"),
    ):
        startup.feed(f"({who}) INFO 11-23 22:53:56 [some.py:1] {said}")
    thinker, talker, _ = startup.stages
    assert (thinker.phase, thinker.weights_gib, thinker.pid) == ("profiling", 29.61, 1)
    assert (talker.phase, talker.weights_gib, talker.pid) == ("profiling", 6.26, 2)


def test_progress_bars_are_told_as_counts() -> None:
    startup = StartupLog(clock=lambda: 5.0)
    startup.feed("Launching Orchestrator thread with 3 stages")
    startup.feed(
        "(StageEngineCoreProc_stage0_replica0 pid=7) INFO 11-23 04:03:34 [x.py:1] Starting to load model /m..."
    )
    assert startup.feed("Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:00<00:01,  3.79it/s]")
    assert startup.stages[0].words(9.0) == "thinker: loading the weights (3 of 7), 4 s"
    assert not startup.feed("Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:00<00:01,  3.79it/s]")


def test_a_stage_that_speaks_behind_the_progress_bar_of_another() -> None:
    """As recorded on an H100, where the talker captured graphs while the thinker had its weights."""
    startup = StartupLog(clock=lambda: 5.0)
    startup.feed("Launching Orchestrator thread with 3 stages")
    bar = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  88%|########  | 14/16 [00:02<00:00,  5.1it/s]"
    weights = "INFO 11-23 22:53:56 [gpu_model_runner.py:5416] Model loading took 19.28 GiB memory and 29.5 seconds"
    startup.feed(
        f"(StageEngineCoreProc_stage1_replica0 pid=2) {bar}(StageEngineCoreProc_stage0_replica0 pid=1) {weights}"
    )
    thinker, talker, _ = startup.stages
    assert (thinker.weights_gib, thinker.pid, talker.weights_gib, talker.pid) == (19.28, 1, None, 2)
    assert (talker.phase, talker.detail) == ("capturing", "14 of 16")
    startup.feed("(APIServer pid=3) INFO 11-23 22:53:57 stage-0 [rep-0] EngineCore running")
    startup.feed(f"(StageEngineCoreProc_stage0_replica0 pid=1) {bar}")
    assert startup.stages[0].detail == ""


@pytest.mark.parametrize(
    "line",
    [
        "", "\0\0\0", "\x1b[31mred\x1b[0m", "x" * 100_000, "Stage 99 initialized", "INFO 13-45 99:99:99 nonsense",
        "(StageEngineCoreProc_stage99_replica0 pid=1) Model loading took", "Launching Orchestrator thread with",
        "stage-7 [rep-0] EngineCore running", "(StageEngineCoreProc_stage0_replica0 pid=1) Loading shards: | 1/",
    ],
)  # fmt: skip
def test_strange_lines_change_nothing(line: str) -> None:
    startup = StartupLog(clock=lambda: 5.0)
    startup.feed("Launching Orchestrator thread with 3 stages")
    before = [stage.phase for stage in startup.stages]
    startup.feed(line)
    assert [stage.phase for stage in startup.stages] == before


def test_stages_of_another_pipeline_have_numbers() -> None:
    startup = StartupLog()
    startup.feed("Launching Orchestrator thread with 5 stages")
    assert [stage.name for stage in startup.stages] == ["thinker", "talker", "code2wav", "stage 3", "stage 4"]


def test_a_log_is_followed_through_half_lines_and_progress_bars(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"one\ntw")
    follower = Follower(path)
    assert list(follower.lines()) == ["one"]
    with path.open("ab") as file:
        file.write("o\n10%\r20%\r\nhal\xc3".encode("latin-1"))
    assert list(follower.lines()) == ["two", "10%", "20%"]
    with path.open("ab") as file:
        file.write("\xa4".encode("latin-1"))
    assert list(follower.flush()) == ["halä"]


def test_the_log_of_a_server_that_nobody_watches_does_not_fill_the_disk(
    folder: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_LOG_BYTES", 10)
    child, server = process.start(["sleep", "600"], {}, folder.fresh_log())
    gone = server.model_copy(update={"started_ticks": 1})
    folder.write(ServerState(status="ready", supervisor=gone, server=server))
    for text in ("short", "a long line"):
        folder.log.write_text(text)
        assert "nobody watches it" in folder.read().message
        assert folder.log.read_text() == ("short" if text == "short" else "")
    child.kill()
    child.wait()


def test_a_log_that_grew_large_is_emptied_and_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_LOG_BYTES", 10)
    path = tmp_path / "server.log"
    with path.open("ab", buffering=0) as server:
        server.write(b"a long line\n")
        follower = Follower(path)
        assert list(follower.lines()) == ["a long line"]
        assert path.stat().st_size == 0
        server.write(b"next\n")
        assert list(follower.lines()) == ["next"]
