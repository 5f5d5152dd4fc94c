"""The quick start, run as the server's interpreter runs it, on a stand-in for the parts of vLLM-Omni that it reaches.

Their names and signatures are those of vllm 0.30.0 and vllm-omni 0.30.0; tests/server/test_profile.py compares with the
installed packages where there are any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_app.server import fast_stages, fast_start

FILES = {
    "vllm_omni/entrypoints/async_omni.py": "class AsyncOmni:\n"
    "    def __init__(self, *, model, **kwargs): self.given = kwargs\n",
    "vllm_omni/engine/stage_phase_lock.py": "def wrap_executor_with_phase_locks(kind, locker): return 'locked'\n",
    "vllm_omni/__init__.py": "",
    "vllm/config/__init__.py": "from types import SimpleNamespace as N\n"
    "class CUDAGraphMode: NONE = 'no graphs'\n"
    "config = N(scheduler_config=N(max_num_seqs=12))\n"
    "def get_current_vllm_config(): return config\n",
    "vllm/model_executor/layers/fused_moe/__init__.py": "class MoERunner: pass\n",
    "vllm/v1/worker/gpu_worker.py": "ran = []\n"
    "def kernel_warmup(worker, *, process_local_only=False): ran.append('its own')\n"
    "class Worker:\n"
    "    def compile_or_warm_up_model(self): kernel_warmup(self)\n",
    "vllm_omni/worker/gpu_ar_model_runner.py": "class GPUARModelRunner:\n"
    "    def _init_talker_mtp(self): self.rows = self.compilation_config.max_cudagraph_capture_size\n"
    "    def _capture_talker_mtp_graphs(self): self.captured = self.compilation_config.cudagraph_capture_sizes\n",
    "vllm_omni/worker/gpu_model_runner.py": "def stage_prefix_cache_config(*, model_config, **kwargs): return kwargs\n",
    "vllm_omni/model_executor/models/qwen3_tts/cuda_graph_decoder_wrapper.py": "class CUDAGraphDecoderWrapper:\n"
    "    extra_capture_shapes = [(1, 99)]\n"
    "    def warmup(self, device, dtype=None, codec_chunk_frames=0, codec_left_context_frames=0):\n"
    "        self.told = [device, dtype, codec_chunk_frames, codec_left_context_frames]\n",
    "vllm/engine/arg_utils.py": "from types import SimpleNamespace as N\n"
    "class EngineArgs:\n"
    "    def create_engine_config(self): return N(kernel_config=N(enable_jit_warmup=True))\n",
    "vllm_omni/entrypoints/cli/main.py": """
import json, logging, os, sys
def main():
    from vllm.engine.arg_utils import EngineArgs
    from vllm_omni.entrypoints.async_omni import AsyncOmni
    told = {
        "argv": sys.argv, "given": AsyncOmni(model="m").given,
        "warm_up": EngineArgs().create_engine_config().kernel_config.enable_jit_warmup,
        "tables": logging.getLogger("vllm_omni.metrics.stats").isEnabledFor(logging.INFO),
        "in_stages": os.environ.get("OMNI_START_IN_STAGES", ""), "path": sys.path[0],
    }
    print(json.dumps(told))
""",
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import logging; logging.getLogger().setLevel(0)\n" + text)
    version(tmp_path, "0.30.0")
    return tmp_path


def version(packages: Path, number: str) -> None:
    info = packages / "vllm_omni-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-omni\nVersion: {number}\n")


def run(packages: Path, switches: str) -> subprocess.CompletedProcess[str]:
    return python(packages, "-P", str(fast_start.__file__), switches, "serve", "/m", "--omni")


def python(packages: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], text=True, capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(packages), **environ},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("switches", "changed"),
    [
        ("none", {}),
        ("parallel", {"given": {"parallel_stage_init": True}}),
        ("no-sampler-warm-up", {"warm_up": False}),
        ("no-request-tables", {"tables": False}),
        ("parallel,no-locks", {"given": {"parallel_stage_init": True}, "in_stages": "no-locks"}),
        ("warm-up-experts", {"in_stages": "warm-up-experts"}),
        ("share-layers,small-predictor", {"in_stages": "share-layers,small-predictor"}),
        ("none,crowd-graphs,no-states", {"in_stages": "crowd-graphs,no-states"}),
    ],
)
def test_each_switch_does_its_one_thing(packages: Path, switches: str, changed: dict[str, object]) -> None:
    told = json.loads(run(packages, switches).stdout)
    plain = {
        "argv": ["vllm", "serve", "/m", "--omni"], "given": {}, "warm_up": True, "tables": True, "in_stages": "",
    }  # fmt: skip
    assert told.pop("path") == str(packages)
    assert told == {**plain, **changed}


def test_another_version_starts_as_it_is(packages: Path) -> None:
    version(packages, "0.31.2")
    notice, told = run(packages, "parallel").stdout.splitlines()
    assert "0.31.2 starts as it is" in notice
    assert json.loads(told)["given"] == {}


def test_an_unknown_switch_is_refused(packages: Path) -> None:
    refused = run(packages, "faster")
    assert refused.returncode == 1
    assert "unknown switch: faster" in refused.stderr


ENGINE_PROCESS = f"""
import json, runpy
runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")  # as multiprocessing spawns it
from types import SimpleNamespace as N
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.v1.worker import gpu_worker
from vllm_omni.engine.stage_phase_lock import wrap_executor_with_phase_locks
def warm_up(modules, most):
    gpu_worker.ran.clear()
    worker = gpu_worker.Worker()
    worker.get_model = lambda: N(modules=lambda: modules)
    worker.scheduler_config = N(max_num_batched_tokens=most)
    worker.model_runner = runner = N(has_talker_mtp=True)
    def run(tokens, **how):
        assert not runner.has_talker_mtp
        if tokens > 4096: raise RuntimeError("no room")
        gpu_worker.ran.append([tokens, how])
    runner._dummy_run = run
    worker.compile_or_warm_up_model()
    assert runner.has_talker_mtp
    return list(gpu_worker.ran)
experts = [object(), MoERunner()]
print(json.dumps([wrap_executor_with_phase_locks("plain", None), warm_up(experts, 4), warm_up([object()], 8192),
                  len(warm_up(experts, 8192))]))
"""


def test_an_engine_process_follows_the_switches(packages: Path) -> None:
    plain = json.loads(python(packages, "-c", ENGINE_PROCESS).stdout)
    switched = python(packages, "-c", ENGINE_PROCESS, OMNI_START_IN_STAGES="no-locks,warm-up-experts")
    how = {"cudagraph_runtime_mode": "no graphs", "skip_eplb": True}
    assert plain == ["locked", ["its own"], ["its own"], 1]
    assert json.loads(switched.stdout) == [
        "plain",
        ["its own", *([tokens, how] for tokens in (1, 2, 2, 3, 4))],
        ["its own"],
        1 + 2 * len(fast_stages.EXPERT_TOKENS),
    ]


PREDICTOR = f"""
import json, runpy
runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")
from types import SimpleNamespace as N
from vllm_omni.worker.gpu_ar_model_runner import GPUARModelRunner
def made(users, sizes):
    runner, most = GPUARModelRunner(), max(sizes, default=0)
    runner.max_num_reqs = users
    runner.compilation_config = config = N(cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=most)
    runner._init_talker_mtp()
    runner._capture_talker_mtp_graphs()
    assert config.cudagraph_capture_sizes == sizes and config.max_cudagraph_capture_size == most
    return [runner.rows, runner.captured]
print(json.dumps([made(12, [1, 8, 16, 64, 512]), made(16, [1, 8]), made(4, [])]))
"""


def test_the_predictor_is_made_for_the_users_alone(packages: Path) -> None:
    plain = json.loads(python(packages, "-c", PREDICTOR).stdout)
    small = json.loads(python(packages, "-c", PREDICTOR, OMNI_START_IN_STAGES="small-predictor").stdout)
    assert plain == [[512, [1, 8, 16, 64, 512]], [8, [1, 8]], [0, []]]
    assert small == [[16, [1, 8, 16]], [8, [1, 8]], [0, []]]


CROWDS = f"""
import json, runpy
runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")
from vllm.config import config
from vllm_omni.model_executor.models.qwen3_tts.cuda_graph_decoder_wrapper import CUDAGraphDecoderWrapper
def captured(users, *frames):
    config.scheduler_config.max_num_seqs, wrapper = users, CUDAGraphDecoderWrapper()
    given = dict(zip(("codec_chunk_frames", "codec_left_context_frames"), frames))
    wrapper.warmup("cuda", dtype="long", **given)
    assert wrapper.told == ["cuda", "long", *frames, *[0] * (2 - len(frames))]
    return [shape for shape in wrapper.extra_capture_shapes if tuple(shape) != (1, 99)]
print(json.dumps([captured(1, 10, 25), captured(5, 10, 25), captured(29, 10, 2), captured(16)]))
"""


def test_code2wav_has_graphs_for_crowds(packages: Path) -> None:
    plain = json.loads(python(packages, "-c", CROWDS).stdout)
    one, five, many, unknown = json.loads(python(packages, "-c", CROWDS, OMNI_START_IN_STAGES="crowd-graphs").stdout)
    assert plain == [[], [], [], []]
    assert one == unknown == []
    assert five == [[answers, frames] for answers in (2, 4, 5) for frames in (4, 16, 35)]
    assert many == [[answers, frames] for answers in (2, 4, 8, 16) for frames in (4, 12)]


STATES = f"""
import json, runpy
runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")
from types import SimpleNamespace as N
from vllm_omni.worker import gpu_model_runner
def made(kind): return gpu_model_runner.stage_prefix_cache_config(model_config=N(engine_output_type=kind), blocks=7)
print(json.dumps([made("text"), made("latent"), made("audio"), made(None)]))
"""


def test_no_states_are_kept_where_only_text_comes_out(packages: Path) -> None:
    plain = json.loads(python(packages, "-c", STATES).stdout)
    without = json.loads(python(packages, "-c", STATES, OMNI_START_IN_STAGES="no-states").stdout)
    assert plain == [{"blocks": 7}] * 4
    assert without == [None, *[{"blocks": 7}] * 3]


@pytest.mark.parametrize("switch", ["crowd-graphs", "no-states"])
def test_a_switch_that_finds_nothing_to_change_leaves_the_server_be(packages: Path, switch: str) -> None:
    for name in ("worker/gpu_model_runner.py", "model_executor/models/qwen3_tts/cuda_graph_decoder_wrapper.py"):
        (packages / "vllm_omni" / name).write_text("moved = True\n")
    command = f"import runpy; runpy.run_path({str(fast_start.__file__)!r}, run_name='__mp_main__'); print('serves')"
    told = python(packages, "-c", command, OMNI_START_IN_STAGES=switch)
    assert told.stdout.strip() == "serves"
    assert "A switch of the quick start is left out" in told.stderr
