"""Readings of boards that are not here, from fake /proc and /sys trees in the layout that their kernels have.

Thor: `gpu-gpc-0`, `gpu-nvd-0` and `bwmgr` without a load file (JetPack 7.2, as jetson-stats' issue 885 and pull request
825 list them). Orin: `17000000.gpu` with device/load in per mille.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from omni_app.hardware import Sources
from omni_app.server import telemetry
from omni_app.ui.system import readings_html

MEMINFO = {"proc/meminfo": "MemTotal:       128821120 kB\nMemAvailable:   60000000 kB\n"}
THOR = MEMINFO | {
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n", "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
    "sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000\n", "sys/class/devfreq/bwmgr/cur_freq": "2133000000\n",
    "sys/class/devfreq/bwmgr/max_freq": "4266000000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "48750\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n", "sys/class/thermal/thermal_zone1/temp": "61200\n",
    "sys/class/thermal/thermal_zone2/type": "off\n", "sys/class/thermal/thermal_zone2/temp": "",
}  # fmt: skip
ORIN = MEMINFO | {
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n", "sys/class/devfreq/17000000.gpu/device/load": "873\n",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "998400000\n",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], Sources]:
    def made(files: dict[str, str]) -> Sources:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return Sources(root=tmp_path)

    return made


def told(sources: Sources) -> dict[str, str]:
    return {reading.name: reading.value for reading in telemetry.read(sources)}


def test_thor_tells_clocks_memory_and_heat(tree: Callable[[dict[str, str]], Sources]) -> None:
    assert told(tree(THOR)) == {
        "memory": "65.6 of 122.9 GiB used",
        "GPU clock": "1575 of 1575 MHz",
        "memory clock": "2133 of 4266 MHz",
        "hottest sensor": "61 °C",
    }


def test_orin_tells_its_load_too(tree: Callable[[dict[str, str]], Sources]) -> None:
    found = told(tree(ORIN))
    assert (found["GPU clock"], found["GPU load"]) == ("1300 MHz", "87 %")


def test_nothing_is_made_up(tree: Callable[[dict[str, str]], Sources]) -> None:
    assert told(tree({})) == {}
    assert list(told(tree(MEMINFO))) == ["memory"]


@pytest.mark.parametrize(
    ("gpu", "load"), [({"gpu": {"status": {"load": 97.0}}}, "97 %"), ({"gpu": {"status": {}}}, None), ({}, None)]
)
def test_jetson_stats_is_asked_where_it_is_installed(
    gpu: dict[str, object], load: str | None, tree: Callable[[dict[str, str]], Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a fake of its Python interface: `jtop()` as a context, `.gpu` by name."""
    assert told(scripted_jetson_stats(gpu, tree(THOR), monkeypatch)).get("GPU load") == load


def test_a_jetson_stats_whose_service_is_down_is_left_alone(
    tree: Callable[[dict[str, str]], Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "GPU load" not in told(scripted_jetson_stats(None, tree(THOR), monkeypatch))


def scripted_jetson_stats(gpu: dict[str, object] | None, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Sources:
    module = types.ModuleType("jtop")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]

    class JtopException(Exception):
        pass

    class Jtop:
        def __enter__(self) -> types.SimpleNamespace:
            if gpu is None:
                raise JtopException("The jtop.service is not active.")
            return types.SimpleNamespace(gpu=gpu)

        def __exit__(self, *_: object) -> None: ...

    module.jtop, module.JtopException = Jtop, JtopException  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)
    return sources


def test_the_page_shows_each_reading_with_its_source() -> None:
    shown = readings_html([telemetry.Reading("GPU load", "<97 %", "jetson-stats")])
    assert 'title="jetson-stats"' in shown
    assert "GPU load &lt;97 %" in shown
    assert readings_html([]) == ""
