"""A hub's model is looked at, fetched and pushed by huggingface_hub's own client, against a scripted hub."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantize import checkpoint, environment, job, worker
from quantize.errors import ModelUnusable
from quantize.hub import _cached as cached
from quantize.hub import fetch, resolve
from quantize.progress import silent
from tests.quantize import scripted_hub
from tests.quantize.job_steps import Command, Stand, started, until
from tests.quantize.scripted_hub import COMMIT, TOKEN, Hub, Repo
from tests.server import model_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The scripted hub, and an environment in which every command asks that one."""
    with scripted_hub.asked(tmp_path / "hf", monkeypatch) as found:
        yield found


@pytest.fixture
def text_files(text_model: Path) -> dict[str, bytes]:
    """A text model as a repository: besides what is needed, a second copy of the weights and pictures."""
    more = {"README.md": b"# card", "picture.png": b"png", "pytorch_model.bin": bytes(500_000), "original/a.txt": b"a"}
    return {file.name: file.read_bytes() for file in text_model.iterdir()} | more


@pytest.fixture
def result(text_model: Path) -> Path:
    """A folder that looks like a finished result."""
    (text_model / "README.md").write_text("---\nbase_model: a/b\n---\n# A model\n")
    (text_model / ".cache").mkdir()
    (text_model / ".hidden").write_text("not to be sent")
    return text_model


def ran(command: list[str], **variables: str) -> tuple[int, dict[str, Any]]:
    env = {**os.environ, **variables}
    read, write = os.pipe()  # a visitor's push ends when its standard input does
    with os.fdopen(read), os.fdopen(write, "w"):
        ended = subprocess.run(
            command, cwd=environment.ROOT, stdin=read, capture_output=True, text=True, check=False, env=env
        )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, json.loads(ended.stdout.strip().splitlines()[-1])


def test_estimate_reads_headers_alone(hub: Hub, command: Command, text_files: dict[str, bytes]) -> None:
    weights = text_files["model.safetensors"] + bytes(2_000_000)  # a file may be longer than its tensors
    hub.repos["them/model"] = Repo({**text_files, "model.safetensors": weights})
    code, found = ran(command("estimate", "https://huggingface.co/them/model@main"))  # as copied from a browser
    assert code == 0
    assert found["parameters"] == 41_024
    assert found["download_bytes"] == len(weights)  # config.json came along with the look
    assert hub.sent["model.safetensors"] <= 100_001
    assert set(hub.sent) == {"config.json", "model.safetensors"}


def test_estimate_of_a_model_in_many_files(hub: Hub, command: Command, text_model: Path) -> None:
    first = {"model.embed_tokens.weight": ("BF16", [64, 64]), "model.norm.weight": ("BF16", [64])}
    second = {"model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64])}
    files = {"config.json": (text_model / "config.json").read_bytes()}
    weight_map = {}
    for name, shard in (("a.safetensors", first), ("b.safetensors", second)):
        model_folder.write(text_model / name, shard)
        files[name] = (text_model / name).read_bytes()
        weight_map |= dict.fromkeys(shard, name)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repos["them/model"] = Repo(files)
    code, found = ran(command("estimate", "them/model"))
    assert (code, found["parameters"]) == (0, 64 * 64 + 64 + 128 * 64)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("them/nothing", "no folder them/nothing here and no model of that name"),
        ("them/private", "if it is private log in"),
        ("them/gated", "accept its terms"),
        ("them/model@gone", "no revision gone"),
        ("them/packed", "already quantized"),
        ("them/weightless", "no weights as safetensors"),
        ("them/broken", "damaged at the hub"),
        ("them/odd", "not a model's configuration"),
    ],
)
def test_unusable_models_are_told_in_a_sentence(
    hub: Hub, command: Command, text_files: dict[str, bytes], source: str, words: str
) -> None:
    hub.repos |= {
        "them/model": Repo(text_files),
        "them/private": Repo(text_files, private=True),
        "them/gated": Repo(text_files, gated=True),
        "them/packed": Repo({**text_files, "hf_quant_config.json": b"{}"}),
        "them/weightless": Repo({"config.json": text_files["config.json"]}),
        "them/odd": Repo({**text_files, "config.json": b"[]"}),
        "them/broken": Repo({**text_files, "model.safetensors": b"\x10\0\0\0\0\0\0\0no json at all!!"}),
    }
    code, found = ran(command("estimate", source))
    assert code == 1
    assert words in found["error"]


def test_what_is_fetched_is_what_was_looked_at(
    hub: Hub, command: Command, text_files: dict[str, bytes], tmp_path: Path
) -> None:
    repo = hub.repos["them/model"] = Repo(text_files)
    found = resolve("them/model")
    shapes = {"model.embed_tokens.weight": ("BF16", [64, 64]), "model.layers.0.mlp.up_proj.weight": ("BF16", [64, 64])}
    model_folder.write(tmp_path / "other", shapes)
    repo.move({**text_files, "model.safetensors": (tmp_path / "other").read_bytes()})
    folder = fetch(found)
    assert (folder / "model.safetensors").read_bytes() == text_files["model.safetensors"]
    asked = command("estimate", "them/model")
    assert ran(asked)[1]["parameters"] == 2 * 64 * 64
    assert ran(asked, HF_HUB_OFFLINE="1")[1]["parameters"] == 41_024


def test_a_job_fetches_what_was_looked_at_when_it_was_made(
    hub: Hub, command: Command, python_as_worker: Stand, text_files: dict[str, bytes], tmp_path: Path
) -> None:
    python_as_worker("exit 0")
    repo = hub.repos["them/model"] = Repo(text_files)
    asked = command("run", "them/model", tmp_path / "out", "--jobs", tmp_path / "jobs")
    requests = [job.Job(Path(ran(asked)[1]["job"])).request]
    repo.move({**text_files, "config.json": b'{"architectures": ["OtherForCausalLM"]}'})
    folder = worker._source(requests[0], silent)
    assert (folder / "config.json").read_bytes() == text_files["config.json"]
    requests.append(job.Job(Path(ran(asked, HF_HUB_OFFLINE="1")[1]["job"])).request)  # made of what the cache has
    assert [worker._source(request, silent) for request in requests] == [folder, folder]
    repo.earlier.clear()
    with pytest.raises(ModelUnusable, match=f"has no revision {COMMIT}"):
        worker._source(requests[0], silent)


def test_a_part_is_not_taken_for_the_model(hub: Hub, text_files: dict[str, bytes]) -> None:
    hub.repos["them/model"] = Repo(text_files)
    found = resolve("them/model")
    hub.repos.clear()
    with pytest.raises(ModelUnusable, match="gave only a part of them/model"):
        fetch(found)


def test_private_model_with_the_users_token(hub: Hub, command: Command, text_files: dict[str, bytes]) -> None:
    hub.repos["them/private"] = Repo(text_files, private=True)
    assert ran(command("estimate", "them/private"), HF_TOKEN=TOKEN)[0] == 0


def test_hub_out_of_reach(command: Command, unused_address: str, tmp_path: Path) -> None:
    asked = command("estimate", "them/model")
    for variables in ({"HF_ENDPOINT": unused_address}, {"HF_HUB_OFFLINE": "1"}):
        code, found = ran(asked, HF_HOME=str(tmp_path), **variables)
        assert code == 1
        assert "cannot be reached" in found["error"]


def test_no_room_for_the_download(hub: Hub, command: Command, tmp_path: Path, text_files: dict[str, bytes]) -> None:
    model_folder.write(tmp_path / "huge", {"model.embed_tokens.weight": ("BF16", [64, 64])})
    huge = (tmp_path / "huge").read_bytes()
    header = json.loads(huge[8 : 8 + int.from_bytes(huge[:8], "little")])
    header["model.layers.0.mlp.up_proj.weight"] = {
        "dtype": "BF16", "shape": [10**7, 10**7], "data_offsets": [8192, 8192 + 2 * 10**14],
    }  # fmt: skip
    text = json.dumps(header).encode()
    hub.repos["them/huge"] = Repo({**text_files, "model.safetensors": len(text).to_bytes(8, "little") + text})
    code, found = ran(command("run", "them/huge", tmp_path / "out", "--jobs", tmp_path / "jobs"))
    assert code == 1
    assert "GB of disk" in found["error"]
    assert set(hub.sent) == {"config.json", "model.safetensors"}


@pytest.mark.quantize
@pytest.mark.timeout(600)
def test_job_fetches_only_what_it_needs_and_works_offline_afterwards(
    hub: Hub, command: Command, tiny_omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file.name: file.read_bytes() for file in tiny_omni.iterdir()}
    hub.repos["them/tiny-omni"] = Repo({**files, "pytorch_model.bin": bytes(100), "picture.png": b"png"})
    recipe = ("--recipe", "fp8", "--jobs", tmp_path / "jobs")
    code, ended = ran(command("run", "them/tiny-omni", tmp_path / "out", *recipe))
    assert code == 0, ended
    steps = [step for step in job.Job(Path(ended["job"])).steps() if step.stage == "fetch"]
    assert steps[-1].done == steps[-1].total > 1_000_000
    assert not {"pytorch_model.bin", "picture.png"} & hub.sent.keys()
    assert "base_model: them/tiny-omni\n" in (tmp_path / "out" / "README.md").read_text()
    assert not any(name.endswith(".safetensors") and (tmp_path / "out" / name).is_symlink() for name in files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    process = started(command("run", "them/tiny-omni", tmp_path / "again", *recipe))
    until(lambda: len(job.find(tmp_path / "jobs")) == 2)
    again = job.find(tmp_path / "jobs")[0]
    until(lambda: any(step.stage == "quantize" for step in again.steps()), 120)
    job.cancel(again)  # what would follow has been seen of the first
    process.wait(60)


def test_push_is_private_and_sends_what_the_dry_run_lists(hub: Hub, command: Command, result: Path) -> None:
    code, listed = ran(command("push", result, "user/mine", "--dry-run"))
    assert code == 0
    assert hub.asked == []
    assert listed["private"]
    assert {file["name"] for file in listed["files"]} == {"README.md", "config.json", "model.safetensors"}
    code, found = ran(command("push", result, "user/mine"), HF_TOKEN=TOKEN)
    assert (code, found["url"]) == (0, f"{hub.address}/user/mine")
    assert hub.repos["user/mine"].private
    sent = hub.repos["user/mine"].files
    assert {name: len(content) for name, content in sent.items()} == {f["name"]: f["bytes"] for f in listed["files"]}
    assert sent["model.safetensors"] == (result / "model.safetensors").read_bytes()
    assert f'"bytes": {sum(map(len, sent.values()))}' in json.dumps(listed)


def test_push_in_public_when_asked(hub: Hub, command: Command, result: Path) -> None:
    assert ran(command("push", result, "user/mine", "--public"), HF_TOKEN=TOKEN)[0] == 0
    assert not hub.repos["user/mine"].private


def test_push_removes_what_an_earlier_model_left(hub: Hub, command: Command, result: Path) -> None:
    kept = {".gitattributes": b"", "picture.png": b"png", "original/model-00002-of-00002.safetensors": b"theirs"}
    earlier = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
               "hf_quant_config.json", "recipe.yaml", "README.md"]  # fmt: skip
    hub.repos["user/mine"] = Repo({**kept, **dict.fromkeys(earlier, b"old")}, private=True)
    assert ran(command("push", result, "user/mine"), HF_TOKEN=TOKEN)[0] == 0
    repo = hub.repos["user/mine"]
    assert repo.files.keys() == {*kept, "README.md", "config.json", "model.safetensors"}
    assert repo.files["README.md"] == (result / "README.md").read_bytes()
    assert len([line for line in hub.asked if line.endswith("/commit/main")]) == 1


@pytest.mark.parametrize(
    ("repo", "options", "variables", "words"),
    [
        ("user/mine", (), {}, "takes your own login"),
        ("user/mine", ("--visitor",), {"HF_TOKEN": TOKEN}, "log in on the page"),
        ("user/mine", (), {"HF_TOKEN": "hf_wrong"}, "token is not accepted"),
        ("them/mine", (), {"HF_TOKEN": TOKEN}, "a token that may write to them"),
        ("user/shown", (), {"HF_TOKEN": TOKEN}, "exists and is public, not private"),
        ("nowhere", (), {"HF_TOKEN": TOKEN}, "no repository's name"),
    ],
)
def test_push_is_refused_before_anything_is_sent(
    hub: Hub, command: Command, result: Path, repo: str, options: tuple[str, ...], variables: dict[str, str], words: str
) -> None:
    hub.repos["user/shown"] = Repo({})
    code, found = ran(command("push", result, repo, *options), **variables)
    assert code == 1
    assert words in found["error"]
    assert not hub.objects
    assert not hub.repos["user/shown"].files


def test_push_with_a_visitors_own_token(hub: Hub, command: Command, result: Path) -> None:
    own = {"OMNI_HUB_TOKEN": TOKEN, "HF_TOKEN": "hf_the_servers"}
    assert ran(command("push", result, "user/mine", "--visitor"), **own)[0] == 0


def test_push_where_storage_is_full(hub: Hub, command: Command, result: Path) -> None:
    hub.full = True
    code, found = ran(command("push", result, "user/mine"), HF_TOKEN=TOKEN)
    assert code == 1
    assert "no room" in found["error"]


def test_only_a_finished_result_is_pushed(hub: Hub, command: Command, text_model: Path) -> None:
    code, found = ran(command("push", text_model, "user/mine", "--dry-run"))
    assert code == 1
    assert "no model card" in found["error"]


def test_what_was_looked_at_is_in_the_cache_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, newer = "a" * 40, "b" * 40
    repo = tmp_path / "models--them--model"
    for commit in (looked_at, newer):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").touch()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(newer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoint, "read_source", lambda folder: SimpleNamespace(folder=folder))
    assert [cached("them/model", commit).folder.name for commit in ("", looked_at)] == [newer, looked_at]
    with pytest.raises(ModelUnusable):
        cached("them/model", "c" * 40)
