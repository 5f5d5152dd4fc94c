from __future__ import annotations

import subprocess
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from omni_app.engines.builtin import assets, fetching
from omni_app.engines.builtin.assets import ASSETS, MOONSHINE, RAPIDOCR, Packaged, language_model, licences, packaged
from omni_app.errors import AssetUnavailable
from omni_app.settings import Settings


def settings(model: str, cache_dir: Path) -> Settings:
    return Settings(builtin_model=model, cache_dir=cache_dir)


def test_every_asset_is_pinned() -> None:
    assert len({asset.name for asset in ASSETS}) == len(ASSETS)
    for asset in ASSETS:
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.size > 0
        assert all(piece.package.count("==") == 1 for piece in asset.pieces)


def test_gpl_parts_are_told() -> None:
    by_name = {licence.what: licence.licence for licence in licences()}
    assert by_name["eSpeak NG"].startswith("GPL-3.0")
    assert by_name["phonemizer"].startswith("GPL-3.0")
    assert by_name["Omni App"] == "Apache-2.0"


@pytest.mark.parametrize("models", [MOONSHINE, RAPIDOCR], ids=lambda models: models.package)
def test_installed_models_are_found(models: Packaged) -> None:
    folder = packaged(models)
    assert all((folder / name).is_file() for name, _ in models.sizes)


def test_damaged_installed_model_names_the_pip_command() -> None:
    damaged = Packaged(MOONSHINE.package, MOONSHINE.folder, (("tokenizer.bin", 1),))
    with pytest.raises(AssetUnavailable, match=r"pip install --force-reinstall --no-deps moonshine-voice==0.1.0"):
        packaged(damaged)


def test_missing_package_names_the_pip_command() -> None:
    with pytest.raises(AssetUnavailable, match=r"not installed; run .*pip install .*no-such-package==1"):
        packaged(Packaged("no-such-package==1", "x", ()))


def test_language_model_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    assert language_model(settings(str(mine), tmp_path)) == mine


def test_language_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AssetUnavailable, match=r"no such file; correct the path"):
        language_model(settings(str(tmp_path / "none.gguf"), tmp_path))


def test_without_an_index_all_files_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetUnavailable) as caught:
        language_model(settings("", tmp_path))
    for asset in ASSETS:
        assert asset.name in str(caught.value)
        assert all(piece.package in str(caught.value) for piece in asset.pieces)


def test_language_model_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tmp_path / "got.gguf")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert language_model(settings("hf:owner/repo/sub/file.gguf", tmp_path)) == tmp_path / "got.gguf"
    assert asked == [("owner/repo", "sub/file.gguf")]


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(AssetUnavailable, match="set OMNI_BUILTIN_MODEL to its path"):
        language_model(settings("hf:owner/repo/file.gguf", tmp_path))


@pytest.mark.parametrize("reference", ["hf:", "hf:owner/repo", "hf:file.gguf"])
def test_hub_reference_must_be_whole(tmp_path: Path, reference: str) -> None:
    with pytest.raises(AssetUnavailable, match=r"hf:owner/repo/file.gguf"):
        language_model(settings(reference, tmp_path))


def test_command_line_reports_a_failure_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise AssetUnavailable("The file could not be fetched.")

    monkeypatch.setattr(assets, "ensure_all", fail)
    monkeypatch.setattr("sys.argv", ["assets", "--cache-dir", str(tmp_path)])
    assert assets.main() == 1
    assert capsys.readouterr().err == "The file could not be fetched.\n"


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        tried.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="no index in reach")

    monkeypatch.setattr(fetching.subprocess, "run", offline)
    monkeypatch.setattr(assets, "MOONSHINE", Packaged("no-such-package==1", "x", ()))
    with pytest.raises(AssetUnavailable) as caught:
        assets.ensure_all(tmp_path)
    message = str(caught.value)
    assert len(tried) == 1
    assert "no-such-package is not installed" in message
    assert f"{len(ASSETS)} model files are missing" in message
    command = message.partition("To bring them all")[2]
    for asset in ASSETS:
        assert asset.name in message
        assert all(piece.package in command for piece in asset.pieces)
    assert str(assets.models_dir(tmp_path)) in command
