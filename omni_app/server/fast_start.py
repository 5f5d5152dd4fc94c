"""Runs `vllm serve ... --omni` with start-up switches that the command line of vLLM-Omni 0.30 does not offer.

    python fast_start.py parallel,no-sampler-warm-up serve MODEL --omni --deploy-config deploy.yaml ...

It is run by the server's own interpreter, which knows nothing of this app, so it imports nothing of ours but
fast_stages.py, which has what the engine processes do.

parallel             start the stages that share a GPU at the same time (the engine's parallel_stage_init). Give each
                     stage kv_cache_memory_bytes: the measured KV size would count the other stages' memory as well.
no-locks             with parallel: let the stages profile and compile at the same time as well. By default each stage
                     waits until no other stage loads or captures graphs, although a fixed kv_cache_memory_bytes
                     makes its memory measurement needless.
no-sampler-warm-up   do not compile the Triton kernels of vLLM's own list before serving, top-k/top-p sampling above all
                     (kernel_config's enable_jit_warmup). The first request compiles the few variants it needs instead.
warm-up-experts      compile the Triton kernels of a stage's experts before serving, beside the other stages' compiling.
                     By default the first prompt of each new range of lengths waits a second for them.
share-layers         compile layers that are the same once. PyTorch 2.13 takes each launch of a Triton kernel for
                     another one, so the thinker, whose rotary embedding is one, has all 48 compiled.
small-predictor      compile the talker's code predictor for as many rows as users speak at once. By default it is
                     compiled for each size of CUDA graph that the talker has, of which the larger are for prompts.
crowd-graphs         capture CUDA graphs of code2wav for pieces of several answers at once. By default it has them for
                     one alone, and the kernels of a crowd's are launched one by one, which takes 25 ms each time.
no-states            where only text comes out, cache no states beside keys and values. By default each step copies the
                     last layer's and two others' into the processor's memory, for a later stage that is not there.
tokenizer-once       give the media processor the tokenizer that it is handed. transformers 5.14 loads another one from
                     the disk first, copies the one given three times, and drops all of them.
early-inputs         make what turns requests into prompts while the stages load, and warm it up. By default that begins
                     when the last stage is ready, and the server waits for it.
no-request-tables    do not log a table of 30 lines for each answer; /metrics counts as before.
none                 none of them: the same as `vllm serve`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

VERSION = "0.30."
"""Of vLLM-Omni: the switches reach into it, and other versions may have moved what they reach for."""
log = logging.getLogger(__name__)
IN_STAGES = "OMNI_START_IN_STAGES"
"""The variable that tells the engine processes which switches are theirs."""


def load(name: str) -> ModuleType:
    """A file beside this one, whose folder is kept from the server's path: `vllm` must not find our modules."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stages = load("fast_stages")


def start_stages_in_parallel() -> None:
    from vllm_omni.entrypoints.async_omni import AsyncOmni

    original = AsyncOmni.__init__

    def init(self: AsyncOmni, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parallel_stage_init", True)
        original(self, *args, **kwargs)

    AsyncOmni.__init__ = init


def make_inputs_early() -> None:
    """In the API process: the first stage's input processor, in a thread that begins when that stage is spawned."""
    stage_runtime = stages.reach("vllm_omni.engine.stage_runtime", "launch_stage_replica")
    omni_engine_base = stages.reach("vllm_omni.engine.omni_engine_base", "build_stage0_input_processor")
    if not (stage_runtime and omni_engine_base):
        return
    launch, build = stage_runtime.launch_stage_replica, omni_engine_base.build_stage0_input_processor
    begun: dict[int, tuple[Future[Any], Any, Any]] = {}

    def work(config: Any, made: Future[Any]) -> None:
        inputs = None
        try:
            inputs = warmed(build(config))
        except Exception:
            log.exception("What turns requests into prompts could not be made early.")
        finally:  # whatever ended it: without a result it is made where it is waited for, as without this switch
            made.set_result(inputs)

    @contextmanager
    def launch_and_begin(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with launch(*args, **kwargs) as resources:
            config = kwargs.get("vllm_config")  # pickled for the stage by now: it may be filled in from here on
            if config is not None and kwargs.get("stage_id") == 0 and kwargs.get("num_api_servers", 1) == 1:
                made: Future[Any] = Future()
                begun[id(config)] = made, config.model_config.max_model_len, config
                Thread(target=work, args=(config, made), name="early-inputs", daemon=True).start()
            yield resources

    def take(config: Any) -> Any:
        made, length, _ = begun.pop(id(config), (None, None, None))
        if made is None or length != config.model_config.max_model_len:  # which the stage may have made smaller
            return build(config)
        return made.result() or build(config)

    stage_runtime.launch_stage_replica = launch_and_begin
    omni_engine_base.build_stage0_input_processor = take


def warmed(inputs: Any) -> Any:
    """What the server does with it before it serves; it finds both done."""
    from vllm.renderers.hf import HfRenderer, resolve_chat_template

    renderer = inputs.renderer
    if isinstance(renderer, HfRenderer):
        resolve_chat_template(renderer.tokenizer, None, None, model_config=inputs.model_config)
    renderer.start_mm_warmup_in_background()
    return inputs


def skip_sampler_warm_up() -> None:
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_engine_config

    def create(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        config = original(self, *args, **kwargs)
        config.kernel_config.enable_jit_warmup = False
        return config

    EngineArgs.create_engine_config = create


def leave_out_request_tables() -> None:
    logging.getLogger("vllm_omni.metrics.stats").setLevel(logging.WARNING)


SWITCHES: dict[str, Callable[[], None]] = {
    "parallel": start_stages_in_parallel,
    "tokenizer-once": stages.load_the_tokenizer_once,
    "early-inputs": make_inputs_early,
    "no-sampler-warm-up": skip_sampler_warm_up,
    "no-request-tables": leave_out_request_tables,
    "none": lambda: None,
}
STAGE_SWITCHES: dict[str, Callable[[], None]] = stages.SWITCHES
NAMES = tuple({**SWITCHES, **STAGE_SWITCHES})


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    switches = sys.argv[1].split(",")
    if unknown := set(switches) - set(NAMES):
        raise SystemExit(f"unknown switch: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    sys.argv = ["vllm", *sys.argv[2:]]
    found = importlib.metadata.version("vllm-omni")
    if found.startswith(VERSION):
        os.environ[IN_STAGES] = ",".join(switch for switch in switches if switch in STAGE_SWITCHES)
        for switch in switches:
            if switch in SWITCHES:
                SWITCHES[switch]()
    else:
        print(f"The quick start is made for vLLM-Omni {VERSION}x; {found} starts as it is.", flush=True)
    from vllm_omni.entrypoints.cli.main import main as serve

    serve()


if __name__ == "__mp_main__":
    for switch in filter(None, os.environ.get(IN_STAGES, "").split(",")):
        STAGE_SWITCHES[switch]()

if __name__ == "__main__":
    main()
