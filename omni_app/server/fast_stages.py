"""The switches of fast_start.py for the engine processes, which describes them.

The server's own interpreter loads it by its path and knows nothing of this app, so it imports nothing of ours.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any

log = logging.getLogger(__name__)
LAUNCH_NUMBERS = re.compile(
    r"(\btriton_kernel_wrapper_(?:mutation|functional)\()kernel_idx = \d+, constant_args_idx = \d+, "
)
EXPERT_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072)
"""Tokens in one step for which vLLM chooses another Triton kernel: the keys of its tuned configurations of the talker's
experts (vllm/model_executor/layers/fused_moe/configs), and where its defaults for other GPUs change. What is compiled
already, or needs no compiling, takes milliseconds."""
CROWD = 16
"""Most answers whose pieces of speech are decoded as one CUDA graph; the plan lets no more be decoded at once."""
SHORT_PIECES = (4, 16)
"""Frames of pieces shorter than a whole one, which an answer begins with: others are filled up to one of these."""


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


def capture_graphs_of_crowds() -> None:
    """In an engine process: code2wav's CUDA graphs for pieces of several answers, beside those for one alone."""
    import vllm_omni  # noqa: F401  # changes vllm, and wants to be first

    decoders = reach(
        "vllm_omni.model_executor.models.qwen3_tts.cuda_graph_decoder_wrapper", "CUDAGraphDecoderWrapper.warmup"
    )
    configs = reach("vllm.config", "get_current_vllm_config")
    if not (decoders and configs):
        return
    original = decoders.CUDAGraphDecoderWrapper.warmup

    def warm_up(wrapper: Any, *args: Any, **kwargs: Any) -> None:
        frames = kwargs.get("codec_chunk_frames", 0)
        if frames:
            whole = frames + kwargs.get("codec_left_context_frames", 0)
            users = configs.get_current_vllm_config().scheduler_config.max_num_seqs
            wrapper.extra_capture_shapes = sorted({*wrapper.extra_capture_shapes, *crowds(users, whole)})
        original(wrapper, *args, **kwargs)

    decoders.CUDAGraphDecoderWrapper.warmup = warm_up


def crowds(users: int, whole: int) -> list[tuple[int, int]]:
    """Answers at once, and frames of their longest piece: those asked for are filled up to the next of these."""
    most = min(users, CROWD)
    answers = sorted({min(2**power, most) for power in range(1, most.bit_length() + 1)} - {1})
    return [(count, frames) for count in answers for frames in (*(n for n in SHORT_PIECES if n < whole), whole)]


def leave_out_states() -> None:
    """In an engine process: where only text comes out, no cache of states beside that of keys and values."""
    import vllm_omni  # noqa: F401  # changes vllm, and wants to be first

    runners = reach("vllm_omni.worker.gpu_model_runner", "stage_prefix_cache_config")
    if not runners:
        return
    original = runners.stage_prefix_cache_config

    def configure(**kwargs: Any) -> Any:
        return None if kwargs["model_config"].engine_output_type == "text" else original(**kwargs)

    runners.stage_prefix_cache_config = configure


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


SWITCHES: dict[str, Callable[[], None]] = {
    "no-locks": leave_out_phase_locks,
    "warm-up-experts": warm_up_experts_with_kernels,
    "share-layers": share_layers,
    "small-predictor": keep_predictor_small,
    "crowd-graphs": capture_graphs_of_crowds,
    "no-states": leave_out_states,
    "tokenizer-once": load_the_tokenizer_once,
}
