"""How SAGE's plugin gets into SAGE: alone, beside its base class, with a base that is broken; and its page."""

import ast
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.irp_scripted import PLUGIN, Scripted, dropped_into_sage, load, whole


def test_the_standard_library_is_all_it_imports() -> None:
    tree = ast.parse(PLUGIN.read_text())
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    taken = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert {name.split(".")[0] for name in plain | taken} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("inside", [False, True])
def test_alone_in_an_isolated_interpreter(tmp_path: Path, inside: bool) -> None:
    server = Scripted(lambda request: whole("four"))
    path = dropped_into_sage(tmp_path) if inside else Path(shutil.copy(PLUGIN, tmp_path / "any_name.py"))
    program = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('omni_irp', sys.argv[1]); m = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(m); p = m.OmniIRP({'endpoint': sys.argv[2]})\n"
        "state, history = p.refine('2 + 2?'); print(state.x['response'], len(history), p.halt(history))\n"
        "print(m.IRPPlugin is m.OwnPlugin, 'omni_app' in sys.modules, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-I", "-S", "-X", "dev", "-c", program, str(path), server.address]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    server.close()
    assert done.stderr == ""
    assert done.stdout.split() == ["four", "6", "True", str(not inside), "False", "False"]


def test_a_link_in_sages_folder_counts_as_lying_there(tmp_path: Path) -> None:
    assert load(dropped_into_sage(tmp_path, link=True)).IRPPlugin.__module__ == "sage_irp_base"


def test_an_importable_sage_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped_into_sage(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = load()
    base = sys.modules["sage.irp.base"]
    for name in ("sage", "sage.irp", "sage.irp.base"):
        sys.modules.pop(name)
    assert module.IRPPlugin is base.IRPPlugin
    assert issubclass(module.OmniIRP, module.IRPPlugin)
    assert isinstance(module.OmniIRP().init_state("x", {}), base.IRPState)


@pytest.mark.parametrize("broken", ["import torch_that_is_not_here", "raise RuntimeError('no CUDA')", "def ("])
def test_a_base_that_does_not_run_is_left_aside(tmp_path: Path, broken: str) -> None:
    path = dropped_into_sage(tmp_path)
    (path.parents[1] / "base.py").write_text(broken)
    module = load(path)
    assert module.IRPPlugin is module.OwnPlugin


def test_our_own_base_gives_the_figures_of_sages(tmp_path: Path) -> None:
    ours, sages = load(), load(dropped_into_sage(tmp_path))
    draw = random.Random(11)
    for _ in range(300):
        config = {
            "max_iterations": draw.choice([0, 1, 5, 100]), "halt_K": draw.choice([1, 3, 6]),
            "halt_eps": draw.choice([0.0, 1e-4, 0.1]), "entity_id": "x", "ATP_per_step": 0.25,
        }  # fmt: skip
        energies = [draw.choice([0.0, None, 0.5, draw.random()]) for _ in range(draw.randrange(1, 12))]
        figures = []
        for module in (ours, sages):
            plugin = module.OmniIRP(config)
            history = [
                module.IRPState(x={"draft": "d", "change": 0.3}, energy_val=energy, step_idx=at, timestamp=at * 1.5)
                for at, energy in enumerate(energies)
            ]
            told = plugin.emit_telemetry(history[-1], history)
            figures.append((plugin.halt(history), plugin.get_halt_reason(history), plugin.get_halt_reason([]), told))
        mine, theirs = (figure[3].pop("trust") for figure in figures)
        assert mine == pytest.approx(theirs)
        assert figures[0] == figures[1]
    assert math.isinf(ours.OmniIRP().compute_trust_metrics([])["dE_variance"])


def test_the_page_lists_every_key_of_the_config() -> None:
    page = (Path(__file__).parents[1] / "docs" / "irp.md").read_text()
    rows = {
        row.split("|")[1].strip().strip("`"): row.split("|")[2].strip() for row in page.splitlines() if row[:3] == "| `"
    }
    shown = {key: json.dumps(default) for key, (default, _) in load().CONFIG.items()}
    shown["refine_prompt"] = "`REFINE` in the file"
    assert {key: row.strip("`") for key, row in rows.items()} == {key: text.strip("`") for key, text in shown.items()}
