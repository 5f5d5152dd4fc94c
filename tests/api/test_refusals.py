"""What the API refuses, and whom."""

import json
from typing import Any

import pytest

from omni_app.conversation import ReplyEnd, TextDelta
from omni_app.errors import BadRequest, EngineAtCapacity, EngineFailed, EngineUnavailable, OmniError
from tests.api.callers import HELLO, FakeEngine, ask, b64, said, stock

pytestmark = pytest.mark.anyio


class TestRefusals:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"messages": "\\ud800"}']
    )
    async def test_no_bad_body_is_a_500(self, api: Any, content: bytes) -> None:
        headers = {"content-type": "application/json"}
        said(await (await api(FakeEngine())).post("/v1/chat/completions", content=content, headers=headers), 400)

    async def test_only_json_is_read(self, api: Any) -> None:
        client = await api(FakeEngine())
        response = await client.post("/v1/chat/completions", content=json.dumps({"messages": HELLO}))
        assert "Content-Type" in said(response, 400)

    async def test_voices_are_spelled_as_the_engine_does_and_the_others_left_to_it(self, api: Any) -> None:
        engine = FakeEngine()
        client = await api(engine)
        assert (await ask(client, speaker="CHELSIE")).status_code == 200
        assert (await ask(client, voice="Anna")).status_code == 200
        assert [options.voice for _, options in engine.asked] == ["Chelsie", "Anna"]

    async def test_an_engine_without_speech(self, api: Any) -> None:
        engine = FakeEngine(TextDelta("mute"), ReplyEnd())
        engine.speaks = False
        client = await api(engine)
        assert "does not speak" in said(await ask(client, modalities=["audio"]), 400)
        assert (await ask(client)).json()["choices"][0]["message"]["content"] == "mute"

    async def test_an_engine_that_does_not_know_yet_whether_it_speaks_is_waited_for(self, api: Any) -> None:
        engine = FakeEngine()
        engine.ready = engine.speaks = False
        assert (await ask(await api(engine), modalities=["audio"])).status_code == 200
        engine.script = (EngineUnavailable("Nobody answers there."),)
        assert "Nobody answers" in said(await ask(await api(engine), modalities=["audio"]), 503)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v1/audio/speech"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/chat/completions"),
            ("GET", "/v1/x/y"),
        ],
    )
    async def test_what_is_not_offered_points_to_chat(self, api: Any, method: str, path: str) -> None:
        response = await (await api(FakeEngine())).request(method, path)
        assert "POST /v1/chat/completions" in said(response, 404)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (BadRequest("No."), 400),
            (EngineAtCapacity("Full."), 429),
            (EngineUnavailable("Loading."), 503),
            (EngineFailed("Broke."), 500),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_fails_before_the_first_word_has_its_status(
        self, api: Any, error: OmniError, status: int, stream: bool
    ) -> None:
        assert said(await ask(await api(FakeEngine(error)), stream=stream), status) == str(error)

    async def test_what_fails_in_mid_stream_is_a_chunk(self, api: Any) -> None:
        response = await ask(await api(FakeEngine(TextDelta("so far"), EngineUnavailable("Gone."))), stream=True)
        assert response.status_code == 200
        *_, error, done = response.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["message"] == "Gone."
        assert done == "data: [DONE]"

    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_nobody_foresaw_is_told_in_our_words(self, api: Any, stream: bool) -> None:
        client = await api(FakeEngine(ZeroDivisionError("secret detail")))
        words = said(await ask(client, stream=stream), 500)
        assert "log" in words
        assert "secret" not in words


class TestAccess:
    async def test_the_key(self, api: Any) -> None:
        client = await api(FakeEngine(), serve_key="s3cret", auth="ann:pass")
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic " + b64(b"ann:pass")}):
            response = await client.post("/v1/chat/completions", json={"messages": HELLO}, headers=headers)
            assert "Bearer" in said(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await stock(client, "s3cret").models.list()).data[0].id == "tiny-omni"

    async def test_a_key_may_have_letters_of_any_language(self, api: Any) -> None:
        client = await api(FakeEngine(), serve_key="schlüssel à 鍵")
        headers = {"authorization": "Bearer schlüssel à 鍵".encode()}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200

    async def test_the_login_of_the_page_when_there_is_no_key(self, api: Any) -> None:
        client = await api(FakeEngine(), auth="ann:pässword")
        assert (await client.get("/v1/models", auth=("ann", "pässword"))).status_code == 200
        for wrong in ({"authorization": "Basic ???"}, {"authorization": "Bearer pässword".encode()}, {}):
            response = await client.get("/v1/models", headers=wrong)
            said(response, 401)
            assert response.headers["www-authenticate"].startswith("Basic")

    async def test_other_sites_get_no_leave(self, api: Any) -> None:
        client = await api(FakeEngine())
        origin = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
        preflight = await client.options("/v1/chat/completions", headers=origin)
        assert preflight.status_code == 405
        response = await client.get("/v1/models", headers=origin)
        assert "other sites" in said(response, 403)
        assert not any(name.startswith("access-control") for name in {*preflight.headers, *response.headers})
        for foreign in ("null", "http://127.0.0.1:1", "http://["):
            said(await client.post("/v1/chat/completions", json={}, headers={"origin": foreign}), 403)
        assert (await client.get("/v1/models", headers={"origin": f"{client.base_url}".rstrip("/")})).is_success

    @pytest.mark.parametrize("path", ["/v1/models", "/metrics"])
    async def test_names_bent_to_this_machine_are_refused(self, api: Any, path: str) -> None:
        client = await api(FakeEngine())
        for evil in ("evil.example:7899", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]:1", "localhost:a"):
            response = await client.get(path, headers={"host": evil, "origin": f"http://{evil}"})
            assert "only on this machine" in said(response, 403)
        for own in ("localhost", "LOCALHOST:7899", "127.0.0.1:1", "[::1]:7860"):
            assert (await client.get(path, headers={"host": own})).is_success

    @pytest.mark.parametrize(
        "fields", [{"host": "0.0.0.0"}, {"share": True}, {"serve_key": "s3cret"}, {"auth": "ann:pass"}]
    )
    async def test_a_server_for_others_has_any_name(self, api: Any, fields: dict[str, Any]) -> None:
        client = await api(FakeEngine(), **fields)
        headers = {"host": "omni.example"} | ({"authorization": "Bearer s3cret"} if "serve_key" in fields else {})
        auth = ("ann", "pass") if "auth" in fields else None
        assert (await client.get("/v1/models", headers=headers, auth=auth)).is_success
