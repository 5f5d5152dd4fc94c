"""The headers that every response carries, refusals included, and who may frame the page."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.headers import security_headers
from omni_app.ui.launch import serve
from tests.scripted import ScriptedEngine


@pytest.mark.parametrize("on_space", [False, True])
def test_only_the_hub_may_frame_a_space_and_nobody_anything_else(on_space: bool) -> None:
    policy = security_headers(on_space)["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'self'" + " https://huggingface.co" * on_space)


def test_pages_api_files_and_refusals_carry_them_all(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=0, auth=SecretStr("ann:secret"))
    demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 2))
    expected = {name.lower(): value for name, value in security_headers(on_space=False).items()}
    private = f"gradio_api/file={tmp_path / 'visitors' / 'x'}"
    paths = ("", "health", "config", "v1/models", "v1/nothing", "gradio_api/mcp", "gradio_api/voice/x", private)
    try:
        for path in paths:
            headers = httpx.get(url + path, headers={"accept": "text/html"}).headers
            assert expected.items() <= dict(headers).items(), path
    finally:
        demo.close()


def test_the_page_itself_may_use_microphone_and_camera() -> None:
    allowed = security_headers(on_space=False)["Permissions-Policy"].split(", ")
    assert {"microphone=(self)", "camera=(self)", "geolocation=()"} <= set(allowed)
