"""The switches tokenizer-once and early-inputs, on stand-ins for what they reach.

Their names and signatures are those of vllm 0.30.0, vllm-omni 0.30.0 and transformers 5.14.1, in the same files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_app.server import fast_start

FAKES = {
    "vllm_omni/__init__.py": "",
    "transformers/processing_utils.py": """
import copy
class FakeTokenizer:
    copies = loads = 0
    def __deepcopy__(self, memo): FakeTokenizer.copies += 1; return FakeTokenizer()
class ProcessorMixin:
    def __init__(self, image_processor, tokenizer): self.image_processor, self.tokenizer = image_processor, tokenizer
    @classmethod
    def get_processor_dict(cls, path, **kwargs): copy.deepcopy(kwargs); return {"path": path}, kwargs
    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, path, subfolder="", **kwargs):
        copy.deepcopy(kwargs); FakeTokenizer.loads += 1
        return FakeTokenizer()
    @classmethod
    def from_pretrained(cls, path, **kwargs):
        contents, given = cls.get_processor_dict(path, **kwargs)
        loaded = cls._load_tokenizer_from_pretrained("tokenizer", path, **kwargs)
        return cls((contents["path"], kwargs.get("use_fast")), given.get("tokenizer", loaded))
""",
    "vllm/transformers_utils/processor.py": """
from functools import lru_cache
from transformers.processing_utils import ProcessorMixin
@lru_cache
def cached_get_processor(name, *args, revision=None, trust_remote_code=False, processor_cls=ProcessorMixin, **kwargs):
    return processor_cls.from_pretrained(name, revision=revision, **kwargs)
def get_processor_kwargs_type(processor): return type(processor)
def get_processor_kwargs_keys(kind): return {"fps", "images_kwargs"}
def cached_get_processor_without_dynamic_kwargs(
    name, *args, revision=None, trust_remote_code=False, processor_cls=ProcessorMixin, **kwargs
):
    own = dict(revision=revision, trust_remote_code=trust_remote_code, processor_cls=processor_cls)
    keys = get_processor_kwargs_keys(get_processor_kwargs_type(cached_get_processor(name, **own)))
    return cached_get_processor(name, **own, **{k: v for k, v in kwargs.items() if k not in keys})
def cached_processor_from_config(name, **kwargs): return cached_get_processor_without_dynamic_kwargs(name, **kwargs)
""",
    "vllm/renderers/hf.py": """
import threading
did = []
class HfRenderer:
    tokenizer = "tokenizer"
    def start_mm_warmup_in_background(self): did.append("warm-up")
def resolve_chat_template(tokenizer, chat_template, tools, *, model_config): did.append("template")
""",
    "vllm_omni/engine/stage_runtime.py": """
from contextlib import contextmanager
@contextmanager
def launch_stage_replica(
    vllm_config, executor_class, log_stats, stage_id, *, replica_id=0, omni_parallel_stage_init=False, num_api_servers=1
):
    yield f"stage {stage_id}"
""",
    "vllm_omni/engine/omni_engine_base.py": """
import threading
from types import SimpleNamespace as N
from vllm.renderers.hf import HfRenderer
built = []
def build_stage0_input_processor(stage_vllm_config):
    built.append(threading.current_thread().name)
    if stage_vllm_config.fails and len(built) == 1: raise stage_vllm_config.fails("no such file")
    return N(renderer=HfRenderer(), vllm_config=stage_vllm_config, model_config=stage_vllm_config.model_config)
""",
}
TOKENIZER = f"""
import json, runpy
runpy.run_path({str(fast_start.__file__)!r}, run_name="__mp_main__")  # as multiprocessing spawns it
from transformers.processing_utils import FakeTokenizer, ProcessorMixin
from vllm.transformers_utils import processor as processors
given = FakeTokenizer()
one = processors.cached_processor_from_config("m", revision="r", tokenizer=given, use_fast=True, fps=2)
again = processors.cached_processor_from_config("m", revision="r", tokenizer=given, use_fast=True, fps=3)
loaded, copied = FakeTokenizer.loads, FakeTokenizer.copies
alone = ProcessorMixin.from_pretrained("m")
print(json.dumps([one.tokenizer is given, one is again, one.image_processor, loaded, copied,
                  alone.tokenizer is given, FakeTokenizer.loads - loaded]))
"""
INPUTS = f"""
import json, os, runpy
switches = runpy.run_path({str(fast_start.__file__)!r})["SWITCHES"]
if "EARLY" in os.environ: switches["early-inputs"]()
from types import SimpleNamespace as N
from vllm.renderers import hf
from vllm_omni.engine import omni_engine_base, stage_runtime
def start(fails=None, shorter=False, **how):
    omni_engine_base.built.clear(); hf.did.clear()
    configs = [N(fails=fails, model_config=N(max_model_len=4096)) for _ in range(3)]
    for stage, config in enumerate(configs):
        with stage_runtime.launch_stage_replica(
            vllm_config=config, executor_class=None, log_stats=False, stage_id=stage, **how
        ) as resources:
            assert resources == f"stage {{stage}}"
    if shorter: configs[0].model_config.max_model_len = 2048
    inputs = omni_engine_base.build_stage0_input_processor(configs[0])
    assert inputs.vllm_config is configs[0]
    return omni_engine_base.built[-1] if shorter else list(omni_engine_base.built), list(hf.did)
print(json.dumps([start(), start(fails=RuntimeError), start(fails=SystemExit), start(shorter=True)[0],
                  start(num_api_servers=2)]
                 if "ALL" in os.environ else start()))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name, text in FAKES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def python(packages: Path, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(packages), **environ}
    ended = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=60, env=env)
    assert not ended.returncode, ended.stderr[-2000:]
    return ended


def test_a_processor_that_is_given_a_tokenizer_loads_and_copies_none(packages: Path) -> None:
    plain = json.loads(python(packages, TOKENIZER).stdout)
    once = json.loads(python(packages, TOKENIZER, OMNI_START_IN_STAGES="tokenizer-once").stdout)
    same = [True, True, ["m", True]]
    assert plain == [*same, 2, 2, False, 1]
    assert once == [*same, 0, 0, False, 1]  # one that is given none loads its own as before


def test_inputs_are_made_while_the_stages_load(packages: Path) -> None:
    early, failed, ended, shorter, servers = json.loads(python(packages, INPUTS, EARLY="1", ALL="1").stdout)
    assert early == [["early-inputs"], ["template", "warm-up"]]
    assert failed == ended == [["early-inputs", "MainThread"], []]
    assert shorter == "MainThread"
    assert servers == json.loads(python(packages, INPUTS).stdout) == [["MainThread"], []]


@pytest.mark.parametrize(
    ("script", "file", "name"),
    [
        (TOKENIZER, "transformers/processing_utils.py", "get_processor_dict"),
        (TOKENIZER, "vllm/transformers_utils/processor.py", "cached_get_processor_without_dynamic_kwargs"),
        (INPUTS, "vllm_omni/engine/stage_runtime.py", "launch_stage_replica"),
    ],
)
def test_what_is_not_there_is_told_and_left(packages: Path, script: str, file: str, name: str) -> None:
    path = packages / file
    path.write_text(path.read_text().replace(name, f"{name}_elsewhere"))
    script = script.replace(f".{name}", f".{name}_elsewhere")
    ended = python(packages, script, EARLY="1", OMNI_START_IN_STAGES="tokenizer-once")
    assert "A switch of the quick start is left out: " in ended.stderr
    assert name in ended.stderr
    assert json.loads(ended.stdout) in ([["MainThread"], []], [True, True, ["m", True], 2, 2, False, 1])
