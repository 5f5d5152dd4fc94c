"""The switch share-layers, on PyTorch's own cache keys."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from omni_app.server import fast_start
from quantize import environment

KEYS = f"""
import json, runpy, sys, types
sys.modules["vllm_omni"] = types.ModuleType("vllm_omni")
import torch
from torch._functorch._aot_autograd.autograd_cache import autograd_cache_key
from torch._functorch._aot_autograd.schemas import AOTConfig
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")  # as multiprocessing spawns it

# As the real ones are written in a graph; those need Triton, which has no build for processors alone.
for name in ("triton_kernel_wrapper_mutation", "another"):
    arguments = "int kernel_idx, int constant_args_idx, int scale, Tensor x"
    torch.library.define(f"omni_test::{{name}}", f"({{arguments}}) -> Tensor")

def layer(number, launches, scale=2, op=torch.ops.omni_test.triton_kernel_wrapper_mutation):
    graph = torch.fx.Graph()
    x = graph.placeholder(f"x_{{number}}")
    given = dict(kernel_idx=launches, constant_args_idx=launches, scale=scale, x=x)
    graph.output((graph.call_function(op, (), given),))
    return torch.fx.GraphModule(torch.nn.Module(), graph)

config = AOTConfig(
    fw_compiler=None, bw_compiler=None, inference_compiler=None, partition_fn=None, decompositions={{}},
    num_params_buffers=0, aot_id=0, keep_inference_input_mutations=True, dynamic_shapes=True,
)
mode = FakeTensorMode(shape_env=ShapeEnv())
with mode, tracing(TracingContext(mode)), torch._functorch.config.patch(autograd_cache_normalize_inputs=True):
    another = torch.ops.omni_test.another
    layers = [layer(0, 0), layer(1, 1), layer(2, 2, scale=3), layer(3, 3, op=another), layer(4, 4, op=another)]
    print(json.dumps([autograd_cache_key(one, [torch.empty(4)], config)[0] for one in layers]))
"""


def keys(**environ: str) -> list[str]:
    """Of two layers that differ in a launch's number, a third with another constant, and two that launch nothing but
    have such numbers."""
    if not environment.ready():
        pytest.skip("the quantizer's environment, whose PyTorch it asks, is not built: make quantize-env")
    command, env = [str(environment.python()), "-c", KEYS], {**os.environ, **environ}
    ended = subprocess.run(command, text=True, capture_output=True, timeout=120, env=env)
    assert not ended.returncode, ended.stderr[-2000:]
    found: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.quantize
def test_layers_that_differ_in_the_number_of_a_launch_alone_are_the_same() -> None:
    assert len(set(keys())) == 5  # where this fails, PyTorch has mended it: the switch can go
    first, same, *others = keys(OMNI_START_IN_STAGES="share-layers")
    assert first == same
    assert len({first, *others}) == 4
