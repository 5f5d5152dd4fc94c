"""The GPU session: on a CUDA host with a model for real, and everywhere else against the stand-in for vllm."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.gpu import session as gpu_session
from tests.gpu.steps import ROOT
from tests.server import fake_vllm, model_folder

SMI = """#!/bin/sh
case "$*" in *compute-apps*) exit 0;; esac
echo '0, GPU-5d1f7a, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0, 580.95.05'
"""


def session(out: Path, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu.session", "--out", str(out), *more]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


IN_PROCESS = """#!/bin/sh
for one; do case "$one" in --port=*) port=${{one#--port=}};; esac; done
export FAKE_VLLM='{{"children": false}}'
exec {python} {server} serve in-process --omni --host 127.0.0.1 --port $port
"""
"""In place of an app whose own process holds a model of 70 GB: any server that speaks the app's dialect."""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A serve environment whose vllm is the stand-in, and a nvidia-smi that tells of an H100."""
    programs = {
        "vllm": f'#!/bin/sh\nexec {sys.executable} {fake_vllm.__file__} "$@"\n',
        "python": f'#!/bin/sh\nshift 3\nexec {sys.executable} {fake_vllm.__file__} "$@"\n',
        "nvidia-smi": SMI,
        "app": IN_PROCESS.format(python=sys.executable, server=fake_vllm.__file__),
    }
    folder = tmp_path / "venv/bin"
    folder.mkdir(parents=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return tmp_path / "venv"


def read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    assert member is not None
    return member.read()


SIZES = "talker.compilation_config.cudagraph_capture_sizes=[1,8]"


def test_every_step_runs_where_there_is_no_gpu(stand_in: Path, tmp_path: Path) -> None:
    model = model_folder.make(tmp_path / "model", "nvfp4")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = session(
        tmp_path / "out", f"--model={model}", f"--serve-venv={stand_in}", f"--port={port}", "--users=1,2", "--rounds=1",
        "--steps=speak,media,turns,voices,page,stop,users,soak", "--seconds=0.1", "--variant=codec_chunk_frames=10",
        "--variant=without=warm-up-experts", f"--variant={SIZES}",
        "--switches=parallel,warm-up-experts",
        "--set=thinker.max_model_len=4096", "--set=initial_codec_chunk_frames=8",
        f"--cache-dir={tmp_path / 'cache'}",
        PATH=f"{stand_in}/bin:{os.environ['PATH']}",
    )  # fmt: skip
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {name: facts.get("why") for name, facts in results.items() if not facts["ok"]} == {}, done.stdout[-3000:]
    assert done.returncode == 0
    assert results["serve"]["peak_gib_while_starting"] == pytest.approx((81559 - 80994) / 1024)
    steps = ["serve", "speak", "media", "turns", "voices", "page", "stop", "users", "soak", "stop of serve"]
    variants = [f"{what} {one}" for one in ("codec_chunk_frames=10", "without=warm-up-experts", SIZES)
                for what in ("serve", "users", "stop of serve")]  # fmt: skip
    assert list(results) == [*steps, *variants]
    with tarfile.open(tmp_path / "out/logs.tar.gz") as tar:
        names = tar.getnames()
        told = read(tar, "serve_codec_chunk_frames_10.log")
        assert b"      codec_chunk_frames: 10\n" in told
        assert b"initial_codec_chunk_frames: 8\n" in told
        assert b"max_model_len: 4096\n" in told
        assert b" parallel,warm-up-experts serve " in told
        assert b" parallel serve " in read(tar, "serve_without_warm-up-experts.log")
        [sized] = [name for name in names if "capture_sizes" in name and name.startswith("serve")]
        assert b"cudagraph_capture_sizes:\n    - 1\n    - 8\n" in read(tar, sized)
    assert {"data/server/server.log", "data/server/deploy.yaml"} <= set(names)
    assert (tmp_path / "out/spoken.wav").stat().st_size > 1000


def test_formats_and_engines_stand_side_by_side(stand_in: Path, tmp_path: Path) -> None:
    model = model_folder.make(tmp_path / "model", "nvfp4")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        sys.executable, "-m", "tests.gpu.side_by_side", f"--serve=nvfp4={model}", f"--serve=none={tmp_path}",
        f"--transformers=nf4={model}", f"--out={tmp_path / 'out'}", f"--serve-venv={stand_in}", f"--port={port}",
        f"--transformers-python={stand_in / 'bin/app'}", "--text-tokens=8", f"--cache-dir={tmp_path / 'cache'}",
        "--without=no-states",
    ]  # fmt: skip
    path = f"{stand_in}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert done.returncode == 1, "one of the models cannot be served"
    assert [name for name, facts in results.items() if not facts["ok"]] == [
        "serve none", "serve none-without-no-states",
    ], done.stdout[-3000:]  # fmt: skip
    lines = (tmp_path / "out/table.md").read_text().splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["nvfp4", "nvfp4-without-no-states", "transformers-nf4"]
    told = (tmp_path / "out" / "work" / "serve_nvfp4-without-no-states.log").read_text()
    assert "fast_start.py share-layers,tokenizer-once," in told
    assert lines[0].split("|")[-2].strip() == "1.00 x"


def test_a_server_that_cannot_start_is_told_of_and_nothing_hangs(stand_in: Path, tmp_path: Path) -> None:
    done = session(tmp_path / "out", f"--model={tmp_path}", f"--serve-venv={stand_in}", "--steps=speak")
    assert done.returncode == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert not results["serve"]["ok"]
    assert "speak" not in results
    assert results["serve"]["why"]


def test_a_soak_ends_with_its_facts_before_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict.fromkeys(("users", "rounds", "text_tokens", "frames", "soak_users"), 1)
    given = argparse.Namespace(out=tmp_path, **asked | {"users": "1", "seconds": 600.0})
    told = list[list[str]]()

    def keep(command: list[str], _log: Path, limit_s: float) -> str:
        told.append([*command, str(limit_s)])
        return ""

    monkeypatch.setattr(gpu_session, "run", keep)
    left_s = 100.0
    ends = time.monotonic() + gpu_session.SPARE_S + gpu_session.SOAK_MORE_S + left_s
    gpu_session.Session(given, tmp_path, ends).step("soak", "soak", "http://127.0.0.1:9")
    [command] = told
    seconds, limit_s = float(command[command.index("--seconds") + 1]), float(command[-1])
    assert 0 < seconds <= left_s
    assert limit_s == pytest.approx(seconds + gpu_session.SOAK_MORE_S, abs=1)
    soak = json.loads((tmp_path / "results.json").read_text())["soak"]
    assert not soak["ok"]
    assert soak["why"].startswith("600 s were asked for")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--variant=without=nonsense", "unknown switches: nonsense"),
        ("--variant=nonsense=1", "the deploy file has no nonsense"),
        ("--users=a,b", "a,b is not numbers like 1,4,8"),
    ],
)
def test_what_is_mistyped_is_told_before_anything_starts(
    stand_in: Path, tmp_path: Path, option: str, told: str
) -> None:
    model = model_folder.make(tmp_path / "model", "nvfp4")
    path = f"{stand_in}/bin:{os.environ['PATH']}"
    done = session(tmp_path / "out", f"--model={model}", f"--serve-venv={stand_in}", option, PATH=path)
    assert done.returncode
    assert told in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out/table.txt").exists()


def test_the_facts_of_an_earlier_session_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = session(tmp_path, "--endpoint=http://127.0.0.1:9")
    assert done.returncode == 2
    assert "name another folder" in done.stderr


@pytest.mark.gpu
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    shutil.which("nvidia-smi") is None or "OMNI_GPU_MODEL" not in os.environ,
    reason="needs a CUDA device, and a model's folder in OMNI_GPU_MODEL",
)
def test_the_model_itself(tmp_path: Path) -> None:
    done = session(tmp_path / "out", f"--model={os.environ['OMNI_GPU_MODEL']}", "--budget=1100")
    assert done.returncode == 0, (tmp_path / "out/table.txt").read_text()


def wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)


def test_a_host_without_an_index_is_prepared_from_wheels(tmp_path: Path) -> None:
    main = "from helper import word\n\ndef main():\n    import pytest\n    print(word, pytest.__name__)\n"
    wheel(tmp_path / "serve", "vllm", {"vllm/__init__.py": "", "vllm/entrypoints/cli/main.py": main})
    wheel(tmp_path / "serve", "helper", {"helper-1.0.data/purelib/helper.py": "word = 'served'\n"})
    wheel(tmp_path / "app", "app", {"page.py": "", "app-1.0.data/scripts/app": "#!python\n"})
    into = tmp_path / "into"
    command = [sys.executable, "tests/gpu/prepare_host.py", f"--into={into}"]
    command += [f"--serve={tmp_path / 'serve'}", f"--app={tmp_path / 'app'}"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert subprocess.check_output([into / "serve/bin/vllm"], text=True) == "served pytest\n"
    assert list(into.glob("serve/lib/python3*/site-packages/__pycache__/helper.*.pyc"))
    subprocess.run([into / "app/bin/python", "-c", "import page"], check=True)
    alone = subprocess.run([into / "app/bin/python", "-c", "import pytest"], check=False, capture_output=True)
    assert alone.returncode == 1
