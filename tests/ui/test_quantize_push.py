"""From signing in to the result's address: the Quantize page of a Space, a scripted provider and a scripted hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from omni_app import space
from omni_app.settings import Settings
from tests import scripted_openid
from tests.quantize import scripted_hub
from tests.quantize.scripted_hub import TOKEN, Hub
from tests.scripted_openid import Provider
from tests.stand_in_worker import small_model
from tests.ui.test_quantize import press, visited

SERVERS = "hf_of_the_server"
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with scripted_hub.asked(tmp_path / "hf", monkeypatch) as found:
        monkeypatch.setenv("HF_TOKEN", SERVERS)
        yield found


@pytest.fixture
def provider() -> Iterator[Provider]:
    with scripted_openid.providing(TOKEN) as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a Space with an OAuth application, and one finished job."""
    for name, value in {"SPACE_ID": "ann/omni", **provider.variables()}.items():
        monkeypatch.setenv(name, value)
    data, model = tmp_path / "data", small_model(tmp_path / "small-NVFP4A16")
    (model / "README.md").write_text("---\nbase_model: a/b\n---\n# A model\n")
    job = data / "jobs" / "finished"
    job.mkdir(parents=True)
    recipe = {"scheme": "NVFP4A16", "algorithm": "rtn"}
    request = {"source": str(tmp_path / "small"), "output": str(model), "recipe": recipe}
    (job / "request.json").write_text(json.dumps(request))
    (job / "state.json").write_text(json.dumps({"status": "done", "message": "Verified.", "created": 1.0}))
    return space.adapted(Settings(data_dir=data, host="127.0.0.1", port=0, operator="sesame"))


def share(page: Page) -> Any:
    """Enter as the operator and open the job's panel for sharing."""
    page.get_by_label("Operator's password").fill("sesame")
    page.get_by_label("Operator's password").press("Enter")
    page.get_by_role("button", name="Share it on the Hugging Face hub").click()
    return page.locator("#share")


@pytest.mark.browser
def test_sign_in_see_what_would_be_sent_and_send_it(
    browser: Browser, settings: Settings, hub: Hub, provider: Provider, tmp_path: Path
) -> None:
    assert settings.hub_login == "optional"
    with visited(browser, settings) as visitors:
        page = visitors.page()
        expect(page.locator("#sign-in")).to_have_text("Sign in with Hugging Face")
        expect(page.locator("#share")).to_be_hidden()
        panel = share(page)
        press(page, "What would be uploaded")
        expect(panel.get_by_role("alert")).to_have_text("Name the repository as owner/name.")
        panel.get_by_label("Repository").fill("no name")
        press(page, "What would be uploaded")
        expect(panel.get_by_role("alert")).to_contain_text("is no repository's name; write it as owner/name.")
        panel.get_by_label("Repository").fill("user/small")
        press(page, "Upload")
        expect(panel.get_by_role("alert").first).to_contain_text("sign in at the top of the page")
        press(page, "What would be uploaded")
        expect(panel.get_by_role("status")).to_contain_text("private. Nothing has been sent.")
        listed = set(panel.locator("tbody th").all_inner_texts())
        assert listed == FILES
        assert hub.asked == []

        page.locator("#sign-in").click()
        expect(page.locator("#sign-in")).to_have_text("Sign out (user)")
        assert page.url.endswith("/quantize")
        asked: list[str] = []
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        panel = share(page)
        expect(panel.get_by_label("Repository")).to_have_value("user/small-NVFP4A16")
        press(page, "Upload")
        expect(panel.get_by_role("status")).to_have_text(f"Uploaded: {hub.address}/user/small-NVFP4A16")
        assert asked == ["Upload this model to user/small-NVFP4A16, private, for you alone?"]
        assert hub.repos["user/small-NVFP4A16"].private
        assert hub.repos["user/small-NVFP4A16"].files.keys() == listed
        assert hub.logins - {""} == {TOKEN}  # the storage behind the hub is asked without one
        held = page.content() + json.dumps(page.context.cookies()) + page.evaluate("JSON.stringify(localStorage)")
        written = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
        assert TOKEN not in held
        assert TOKEN.encode() not in written

        page.locator("#sign-in").click()
        expect(page.locator("#sign-in")).to_have_text("Sign in with Hugging Face")


@pytest.mark.browser
def test_a_hub_that_refuses_is_a_sentence_and_the_upload_can_be_begun_again(
    browser: Browser, settings: Settings, hub: Hub
) -> None:
    hub.full = True
    with visited(browser, settings) as visitors:
        panel = share(page := visitors.page())
        repo, token = panel.get_by_label("Repository"), panel.get_by_label("A token of your own")

        def upload(to: str, own: str) -> Any:
            repo.fill(to)
            token.fill(own)
            press(page, "Upload")
            expect(token).to_have_value("")
            return expect(panel.get_by_role("alert").or_(panel.locator(".verdict")))

        upload("user/mine", "hf_wrong").to_contain_text("log in again, its token is not accepted")
        upload("them/mine", TOKEN).to_contain_text("use a token that may write to them")
        upload("user/mine", TOKEN).to_contain_text("it has no room for so many bytes there")
        hub.full = False
        upload("user/mine", TOKEN).to_contain_text("Uploaded:")
        assert hub.repos["user/mine"].files.keys() == FILES
        assert SERVERS not in hub.logins
