"""Runs `vllm serve ... --omni` with start-up switches that the command line of vLLM-Omni 0.30 does not offer.

    python fast_start.py parallel,no-sampler-warm-up serve MODEL --omni --deploy-config deploy.yaml ...

It is run by the server's own interpreter, which knows nothing of this app, so it imports nothing of ours.

parallel             start the stages that share a GPU at the same time (the engine's parallel_stage_init). Give each
                     stage kv_cache_memory_bytes: the measured KV size would count the other stages' memory as well.
no-locks             with parallel: let the stages profile and compile at the same time as well. By default each stage
                     waits until no other stage loads or captures graphs, although a fixed kv_cache_memory_bytes
                     makes its memory measurement needless.
no-sampler-warm-up   do not compile the Triton top-k/top-p sampling kernels before serving (kernel_config's
                     enable_jit_warmup). The first request that samples compiles the few variants it needs instead.
warm-up-experts      compile the Triton kernels of a stage's experts before serving, beside the other stages' compiling.
                     By default the first prompt of each new range of lengths waits a second for them.
share-layers         compile layers that are the same once. PyTorch 2.13 takes each launch of a Triton kernel for
                     another one, so the thinker, whose rotary embedding is one, has all 48 compiled.
small-predictor      compile the talker's code predictor for as many rows as users speak at once. By default it is
                     compiled for each size of CUDA graph that the talker has, of which the larger are for prompts.
tokenizer-once       give the media processor the tokenizer that it is handed. transformers 5.14 loads another one from
                     the disk first, copies the one given three times, and drops all of them.
early-inputs         make what turns requests into prompts while the stages load, and warm it up. By default that begins
                     when the last stage is ready, and the server waits for it.
no-request-tables    do not log a table of 30 lines for each answer; /metrics counts as before.
none                 none of them: the same as `vllm serve`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from operator import attrgetter
from threading import Thread
from typing import Any

VERSION = "0.30."
"""Of vLLM-Omni: the switches reach into it, and other versions may have moved what they reach for."""
log = logging.getLogger(__name__)
IN_STAGES = "OMNI_START_IN_STAGES"
"""The variable that tells the engine processes which switches are theirs."""
LAUNCH_NUMBERS = re.compile(
    r"(\btriton_kernel_wrapper_(?:mutation|functional)\()kernel_idx = \d+, constant_args_idx = \d+, "
)
EXPERT_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072)
"""Tokens in one step for which vLLM chooses another Triton kernel: the keys of its tuned configurations of the talker's
experts (vllm/model_executor/layers/fused_moe/configs), and where its defaults for other GPUs change. What is compiled
already, or needs no compiling, takes milliseconds."""


def start_stages_in_parallel() -> None:
    from vllm_omni.entrypoints.async_omni import AsyncOmni

    original = AsyncOmni.__init__

    def init(self: AsyncOmni, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parallel_stage_init", True)
        original(self, *args, **kwargs)

    AsyncOmni.__init__ = init


def leave_out_phase_locks() -> None:
    """In an engine process: run its start-up phases without waiting for those of the other stages."""
    from vllm_omni.engine import stage_phase_lock

    def unchanged(executor_class: Any, locker: Any) -> Any:
        return executor_class

    stage_phase_lock.wrap_executor_with_phase_locks = unchanged


def warm_up_experts_with_kernels() -> None:
    """In an engine process: after vLLM's own warm-up, let each kernel of the experts be needed once."""
    import vllm_omni  # noqa: F401  # changes vllm, and wants to be first
    from vllm.v1.worker import gpu_worker

    original = gpu_worker.kernel_warmup

    def warm_up(worker: Any, **kwargs: Any) -> None:
        original(worker, **kwargs)
        run_experts(worker)

    gpu_worker.kernel_warmup = warm_up


def run_experts(worker: Any) -> None:
    """One forward pass without graphs for each kernel. Triton compiles anew where a count is no multiple of 8."""
    from vllm.config import CUDAGraphMode
    from vllm.model_executor.layers.fused_moe import MoERunner

    if not any(isinstance(module, MoERunner) for module in worker.get_model().modules()):
        return
    most, runner = worker.scheduler_config.max_num_batched_tokens, worker.model_runner
    predicts = getattr(runner, "has_talker_mtp", False)
    runner.has_talker_mtp = False  # the code predictor would be compiled for these counts, which it never gets
    try:
        for tokens in (count for size in EXPERT_TOKENS for count in (size, size + 1) if count <= most):
            runner._dummy_run(tokens, cudagraph_runtime_mode=CUDAGraphMode.NONE, skip_eplb=True)
    except Exception:  # a start does not depend on it
        log.exception("The kernels of the experts are left to the first requests.")
    finally:
        runner.has_talker_mtp = predicts


def share_layers() -> None:
    """In an engine process: leave the numbers of kernel launches out of the key by which vLLM knows a layer again.

    The key holds each kernel's source and constants beside it; torch._inductor.codecache leaves the numbers out too.
    """
    import vllm_omni  # noqa: F401  # sets what torch reads when it is imported
    from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCachePickler

    original = getattr(AOTAutogradCachePickler, "_reduce_graph_module_for_cache_key", None)
    if original is None:  # another PyTorch: each layer is compiled, as without this
        return

    def reduce(self: AOTAutogradCachePickler, graph: Any) -> Any:
        rebuild, ((contents, imports),) = original(self, graph)
        code = LAUNCH_NUMBERS.sub(r"\1", contents["_code"])
        return rebuild, (({**contents, "_code": code}, imports),)

    AOTAutogradCachePickler._reduce_graph_module_for_cache_key = reduce


def keep_predictor_small() -> None:
    """In an engine process: while the predictor's buffers and graphs are made, show it the sizes that users need."""
    import vllm_omni  # noqa: F401  # changes vllm, and wants to be first
    from vllm_omni.worker.gpu_ar_model_runner import GPUARModelRunner

    def with_small_sizes(original: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(runner: Any) -> None:
            config, sizes = runner.compilation_config, runner.compilation_config.cudagraph_capture_sizes
            if not sizes:
                return original(runner)
            most = min((size for size in sizes if size >= runner.max_num_reqs), default=max(sizes))
            config.cudagraph_capture_sizes = [size for size in sizes if size <= most]
            config.max_cudagraph_capture_size = most
            try:
                original(runner)
            finally:
                config.cudagraph_capture_sizes, config.max_cudagraph_capture_size = sizes, max(sizes)

        return run

    for name in ("_init_talker_mtp", "_capture_talker_mtp_graphs"):
        setattr(GPUARModelRunner, name, with_small_sizes(getattr(GPUARModelRunner, name)))


def load_the_tokenizer_once() -> None:
    """In the API process and in an engine process: what is loaded with a tokenizer neither loads nor copies one.

    transformers.processing_utils puts the given one in the place of the loaded one in the end (from_args_and_dict).
    """
    import vllm_omni  # noqa: F401  # changes vllm, and wants to be first

    names = ("cached_get_processor", "get_processor_kwargs_type", "get_processor_kwargs_keys")
    processors = reach("vllm.transformers_utils.processor", "cached_get_processor_without_dynamic_kwargs", *names)
    methods = ("ProcessorMixin._load_tokenizer_from_pretrained.__func__", "ProcessorMixin.get_processor_dict.__func__")
    mixins = reach("transformers.processing_utils", *methods)
    if not (processors and mixins):
        return
    ProcessorMixin = mixins.ProcessorMixin
    load = ProcessorMixin._load_tokenizer_from_pretrained.__func__
    read = ProcessorMixin.get_processor_dict.__func__
    get = processors.cached_get_processor_without_dynamic_kwargs

    def load_tokenizer(cls: Any, /, name: str, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.get(name) if name == "tokenizer" else None
        used = given is not None and name in inspect.signature(cls.__init__).parameters
        return given if used else load(cls, name, *args, **kwargs)

    def read_dict(cls: Any, /, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        given = {"tokenizer": kwargs.pop("tokenizer")} if "tokenizer" in kwargs else {}
        contents, unused = read(cls, *args, **kwargs)
        return contents, {**unused, **given}

    def get_processor(name: str, *args: Any, processor_cls: Any = ProcessorMixin, **kwargs: Any) -> Any:
        """vLLM loads one without arguments to see which its class takes for each call; the tokenizer changes none."""
        if kwargs.get("tokenizer") is None or not isinstance(processor_cls, type):
            return get(name, *args, processor_cls=processor_cls, **kwargs)
        own = {"revision", "trust_remote_code", "tokenizer"}
        same = {"processor_cls": processor_cls, **{key: kwargs[key] for key in own & kwargs.keys()}}
        kind = processors.get_processor_kwargs_type(processors.cached_get_processor(name, **same))
        dynamic = processors.get_processor_kwargs_keys(kind) - own
        fixed = {key: value for key, value in kwargs.items() if key not in dynamic}
        return processors.cached_get_processor(name, **{**fixed, **same})

    ProcessorMixin._load_tokenizer_from_pretrained = classmethod(load_tokenizer)
    ProcessorMixin.get_processor_dict = classmethod(read_dict)
    processors.cached_get_processor_without_dynamic_kwargs = get_processor


def reach(path: str, *names: str) -> Any:
    """The module, if all that a switch needs of it is there; else None, and the server starts as without the switch."""
    try:
        place = importlib.import_module(path)
        for name in names:
            attrgetter(name)(place)
    except (ImportError, AttributeError) as error:
        log.warning("A switch of the quick start is left out: %s.", error)
        return None
    return place


def make_inputs_early() -> None:
    """In the API process: the first stage's input processor, in a thread that begins when that stage is spawned."""
    stage_runtime = reach("vllm_omni.engine.stage_runtime", "launch_stage_replica")
    omni_engine_base = reach("vllm_omni.engine.omni_engine_base", "build_stage0_input_processor")
    if not (stage_runtime and omni_engine_base):
        return
    launch, build = stage_runtime.launch_stage_replica, omni_engine_base.build_stage0_input_processor
    begun: dict[int, tuple[Future[Any], Any, Any]] = {}

    def work(config: Any, made: Future[Any]) -> None:
        try:
            made.set_result(warmed(build(config)))
        except Exception:  # it is made again where it is waited for, as without this switch
            log.exception("What turns requests into prompts could not be made early.")
            made.set_result(None)

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
    "tokenizer-once": load_the_tokenizer_once,
    "early-inputs": make_inputs_early,
    "no-sampler-warm-up": skip_sampler_warm_up,
    "no-request-tables": leave_out_request_tables,
    "none": lambda: None,
}
STAGE_SWITCHES: dict[str, Callable[[], None]] = {
    "no-locks": leave_out_phase_locks,
    "warm-up-experts": warm_up_experts_with_kernels,
    "share-layers": share_layers,
    "small-predictor": keep_predictor_small,
    "tokenizer-once": load_the_tokenizer_once,
}
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
