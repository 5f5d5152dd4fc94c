"""Signing in with Hugging Face, against a scripted provider, by what a browser without a screen would ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from omni_app import space
from omni_app.cli import main
from omni_app.errors import BadRequest
from omni_app.hub_login import CALLBACK, COOKIE, LOGIN, LOGOUT, HubLogin, Kept, SignIn, person_of
from omni_app.settings import Settings
from tests import scripted_openid
from tests.scripted_openid import Provider

TOKEN = "hf_oauth_of_the_visitor"
PAGE = {"accept": "text/html"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with scripted_openid.providing(TOKEN) as found:
        yield found


@pytest.fixture
def visit(provider: Provider) -> Iterator[Callable[..., TestClient]]:
    """A browser on an app that tells who asks, with these settings and more environment variables."""
    provider.refuses, provider.nonce = False, ""
    provider.asked.clear()
    with ExitStack() as stack:

        def opened(base: str = "http://omni.example", more: dict[str, str] | None = None, **fields: Any) -> TestClient:
            hub = HubLogin(Settings(**({"hub_login": "optional"} | fields)), provider.variables() | (more or {}))
            routes = [*hub.routes(), Route("/{rest:path}", _who, methods=["GET", "POST"])]
            app = Starlette(routes=routes, middleware=[Middleware(SignIn, hub=hub)])
            return stack.enter_context(TestClient(app, base_url=base, follow_redirects=False))

        yield opened


async def _who(request: Request) -> JSONResponse:
    person = person_of(request)
    return JSONResponse([person.name, person.token] if person else None)


def sign_in(browser: TestClient, **query: str) -> httpx.Response:
    """Login, provider and callback, one redirect after another; returns the callback's answer."""
    asked = browser.get(LOGIN, params=query)
    back = httpx.get(asked.headers["location"])
    return browser.get(back.headers["location"])


def test_a_visitor_signs_in_and_out_and_the_browser_holds_no_token(
    visit: Callable[..., TestClient], provider: Provider
) -> None:
    browser = visit()
    assert browser.get("/").json() is None
    begun = browser.get(LOGIN + "?_target_url=/quantize?a=1")
    before = browser.cookies[COOKIE]
    done = browser.get(httpx.get(begun.headers["location"]).headers["location"])
    assert done.headers["location"] == "/quantize?a=1"
    assert browser.cookies[COOKIE] != before
    assert "HttpOnly" in done.headers["set-cookie"]
    assert TOKEN not in str(done.headers) + done.text
    assert browser.get("/").json() == ["user", TOKEN]
    assert provider.asked[0]["redirect_uri"] == f"http://omni.example{CALLBACK}"
    assert provider.asked[0]["scope"] == scripted_openid.SCOPES
    held = browser.cookies[COOKIE]
    assert browser.get(LOGOUT).headers["location"] == "/"
    browser.cookies.set(COOKIE, held)
    assert browser.get("/").json() is None


def test_on_a_space_the_way_back_is_its_public_name(visit: Callable[..., TestClient], provider: Provider) -> None:
    hosts = {"SPACE_ID": "ann/omni", "SPACE_HOST": "ann-omni.hf.space,omni.example"}
    begun = visit("http://10.0.0.3:7860", hosts).get(LOGIN, headers={"x-forwarded-proto": "https"})
    assert "Partitioned" in begun.headers["set-cookie"]
    httpx.get(begun.headers["location"])
    assert provider.asked[0]["redirect_uri"] == f"https://ann-omni.hf.space{CALLBACK}"


@pytest.mark.parametrize(
    "target", ["//evil.example/a", "https://evil.example/a", "/\\evil.example/a", "\t//evil.example/a"]
)
def test_no_login_leads_to_another_site(visit: Callable[..., TestClient], target: str) -> None:
    browser = visit()
    done = sign_in(browser, _target_url=target)
    assert httpx.URL("http://omni.example").join(done.headers["location"]).host == "omni.example"


def test_what_goes_wrong_signs_nobody_in_and_is_a_sentence(
    visit: Callable[..., TestClient], provider: Provider, unused_address: str
) -> None:
    browser, other = visit(), visit()
    provider.refuses = True
    assert "You did not allow it" in sign_in(browser).text
    provider.refuses = False
    back = httpx.get(browser.get(LOGIN).headers["location"]).headers["location"]
    assert "begun in another window" in other.get(back).text
    assert browser.get(back).status_code == 307
    assert "begun in another window" in browser.get(back).text
    provider.nonce = "of another login"
    assert "did not confirm" in sign_in(other).text
    away = visit(more={"OPENID_PROVIDER_URL": unused_address}).get(LOGIN)
    assert (away.status_code, "cannot be reached" in away.text) == (502, True)
    assert other.get("/").json() is None


def test_required_lets_nobody_else_in(visit: Callable[..., TestClient]) -> None:
    browser = visit(hub_login="required")
    for path in (
        "/",
        "/config",
        "/gradio_api/upload",
        "/gradio_api/mcp/",
        "/v1/models",
        "/metrics",
        "/gradio_api/voice/x",
    ):
        assert browser.get(path).status_code == browser.post(path).status_code == 401, path
    page = browser.get("/quantize", headers=PAGE)
    assert page.status_code == 401
    assert f"{LOGIN}?_target_url=/quantize" in page.text
    assert browser.get("/health").status_code == 200
    sign_in(browser)
    assert browser.get("/config").json() == ["user", TOKEN]


def test_the_servers_key_keeps_programs_their_way(visit: Callable[..., TestClient]) -> None:
    """What is let through here is asked for the key by the API itself."""
    browser = visit(hub_login="required", serve_key=SecretStr("k3y"))
    assert browser.get("/v1/models").status_code == browser.get("/gradio_api/mcp/").status_code == 200
    assert browser.get("/config").status_code == 401


def test_a_start_without_the_variables_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in space.OAUTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    with pytest.raises(BadRequest, match="OAUTH_CLIENT_SECRET, OAUTH_SCOPES, OPENID_PROVIDER_URL are not set"):
        HubLogin(Settings(hub_login="optional"))
    assert HubLogin.of(Settings()) is None
    assert main(["run", "--hub-login", "required", "--engine", "builtin"]) == 1
    said = capsys.readouterr().err
    assert "hf_oauth: true" in said
    assert len(said.splitlines()) == 1


def test_a_space_with_an_application_offers_the_login(provider: Provider) -> None:
    on_space = {"SPACE_ID": "ann/omni"}
    assert space.adapted(Settings(), on_space).hub_login == "off"
    assert space.adapted(Settings(), on_space | provider.variables()).hub_login == "optional"
    assert space.adapted(Settings(hub_login="off"), on_space | provider.variables()).hub_login == "off"
    assert space.adapted(Settings(), provider.variables()).hub_login == "off"


def test_what_is_kept_ends_by_time_and_the_oldest_by_number() -> None:
    now = 0.0
    kept: Kept[str] = Kept(2, lambda: now)
    first, second = kept.put("a", 10), kept.put("b", 20)
    now = 10.0
    assert (kept.get(first), kept.get(second)) == (None, "b")
    third, fourth = kept.put("c", 10), kept.put("d", 10)
    assert [kept.get(name) for name in (second, third, fourth)] == [None, "c", "d"]
