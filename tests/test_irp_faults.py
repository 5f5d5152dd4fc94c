"""What goes wrong around SAGE's plugin: servers that are down, slow, half-speaking or refuse; bad input of every kind.

Every wait here is for ever unless the plugin ends it, so a test that comes to its end proves the time limit.
"""

import itertools
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.irp_scripted import Raw, Scripted, event, load, whole

irp = load()
LIMITS = {"timeout_seconds": 0.4, "connect_seconds": 0.4}
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
forever = threading.Event()


@pytest.fixture
def raw() -> Iterator[Callable[..., str]]:
    servers: list[Raw] = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        servers.append(Raw(behave))
        return servers[-1].address

    yield start
    for server in servers:
        server.close()


def drip(piece: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.sendall(piece[:-1])
        while True:
            connection.sendall(piece[-1:])
            forever.wait(0.05)

    return behave


def says(data: bytes, *, then_silent: bool) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        if then_silent:
            connection.recv(1)

    return behave


def everything_that_sage_calls(plugin: Any) -> Iterator[str]:
    """The answer of each way to ask, once each; and that the energy is high."""
    turns = [{"role": "user", "content": "Hi"}]
    yield plugin.get_response("Hi")
    yield plugin.generate_response(turns)
    answer = plugin.get_chat_response(turns)
    assert (answer["tool_calls"], answer["role"], answer["raw"]) == ([], "assistant", {})
    yield answer["content"]
    state = plugin.step(plugin.init_state("Hi", {}))
    assert plugin.energy(state) == state.energy_val == 1.0
    yield state.x["response"]
    yield list(plugin.stream_response(turns))[-1]
    assert plugin.health_check() in (True, False)


def all_tagged(plugin: Any, *words: str) -> None:
    for text in everything_that_sage_calls(plugin):
        assert text.startswith("[OmniIRP: ")
        assert text.endswith("]")
        assert not words or any(word in text for word in words), text


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (says(b"", then_silent=True), ["in time"]),
        (says(b"", then_silent=False), ["No answer"]),
        (says(b"HTTP/1.1 200 O", then_silent=True), ["in time"]),
        (drip(b"HTTP/1.1 200 OK\r\nX: y"), ["in time"]),
        (drip(JSON_HEAD + b" "), ["in time"]),
        (drip(CHUNKED + b"1"), ["in time", "torn", "No answer"]),
        (drip(STREAM_HEAD + b": still here\n"), ["in time"]),
        (says(JSON_HEAD + b'{"choices": [', then_silent=True), ["in time"]),
        (says(JSON_HEAD + b'{"choices": [', then_silent=False), ["torn", "No answer"]),
        (says(STREAM_HEAD + event("half an ans"), then_silent=False), ["broke off"]),
        (says(STREAM_HEAD + event("half an ans"), then_silent=True), ["in time"]),
        (says(STREAM_HEAD + b"data: {torn\n\n", then_silent=True), ["torn"]),
        (says(b"SSH-2.0-OpenSSH_9.6\r\n", then_silent=True), ["No answer"]),
        (says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n", then_silent=True), ["No answer"]),
    ],
)
def test_a_server_that_does_not_speak_as_it_should(
    raw: Callable[..., str], behave: Callable[[socket.socket], None], words: list[str]
) -> None:
    all_tagged(irp.OmniIRP({"endpoint": raw(behave), "model_name": "m", **LIMITS}), *words)


def test_a_server_that_never_ends(raw: Callable[..., str]) -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(STREAM_HEAD)
        while True:
            connection.sendall(b": more\n" * 1000)

    all_tagged(irp.OmniIRP({"endpoint": raw(behave), "model_name": "m", **LIMITS}), "in time", "broke off")


def test_a_server_that_is_down(unused_address: str) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, **LIMITS})
    all_tagged(plugin, "refused")
    _, history = plugin.refine("Hi")
    assert plugin.get_halt_reason(history) == "slope<eps"
    assert plugin.health_check() is False


def test_a_name_lookup_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> None:
        answered.wait()
        raise OSError("not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    all_tagged(irp.OmniIRP({"endpoint": "http://omni.example:8091", **LIMITS}), "in time")
    answered.set()


def test_whose_caller_has_gone_before_the_connection_stands_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server, gone, look_up = Scripted(lambda request: whole("late")), threading.Event(), socket.getaddrinfo

    def late(*asked: Any, **more: Any) -> Any:
        gone.wait()
        return look_up(*asked, **more)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    others = set(threading.enumerate())
    plugin = irp.OmniIRP({**LIMITS, "endpoint": server.address, "model_name": "tiny"})
    assert "in time" in plugin.get_response("Hello")
    (asking,) = set(threading.enumerate()) - others
    gone.set()
    asking.join()
    server.close()
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, b'{"error": {"message": "Send the \\"key\\".", "code": 401}}', 'api_key (HTTP 401): Send the "key".'),
        (403, b'{"error": "no"}', "HTTP 403): no"),
        (429, b'{"error": {"message": "Full."}}', "as many as it can (HTTP 429): Full."),
        (503, b'{"detail": "Loading."}', "not ready (HTTP 503): Loading."),
        (500, b"<html>Oops</html>", "HTTP 500): <html>Oops"),
        (404, b'{"error": {"message": "No such model."}}', "HTTP 404): No such model."),
        (307, b"", "HTTP 307"),
    ],
)
def test_a_server_that_refuses(status: int, body: bytes, word: str) -> None:
    server = Scripted(lambda request: (status, body))
    all_tagged(irp.OmniIRP({"endpoint": server.address, **LIMITS}), word)
    server.close()


@pytest.mark.parametrize(
    "body",
    [
        [], 5, None, "x", {}, {"choices": 5}, {"choices": [5]}, {"choices": [{"message": 5}]}, {"choices": [None]},
        {"choices": [{"message": {"content": 5}}]}, {"choices": [{"message": {"content": ["a"]}}]},
        {"error": {"message": "The talker died.", "code": [1]}}, {"choices": [], "usage": 5},
        {"choices": [{"message": {"content": "x", "tool_calls": 5}}]}, {"choices": []},
        {"modality": "audio", "choices": [{"message": {"content": "not base64!"}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "x"}, "audio_metadata": {"sample_rate_hz": "fast"}}]},
    ],
)  # fmt: skip
def test_an_answer_of_a_form_that_nobody_knows(raw: Callable[..., str], body: Any) -> None:
    content = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
    all_tagged(irp.OmniIRP({"endpoint": raw(says(head + content, then_silent=False)), "model_name": "m", **LIMITS}))


def test_an_empty_answer_is_no_draft() -> None:
    server = Scripted(lambda request: whole(" \n"))
    plugin = irp.OmniIRP({"endpoint": server.address})
    state = plugin.step(plugin.init_state("Hi", {}))
    assert "said nothing" in state.x["response"]
    assert plugin.get_response("Hi") == ""
    server.close()


def test_a_draft_outlives_a_failing_step_and_the_server_recovers() -> None:
    answers: Iterator[Any] = iter([whole("four"), (503, b"{}"), whole("four, surely")])
    server = Scripted(lambda request: next(answers))
    plugin = irp.OmniIRP({"endpoint": server.address})
    drafts = list(
        itertools.accumulate(range(3), lambda state, _: plugin.step(state), initial=plugin.init_state("x", {}))
    )
    assert [one.x["response"] for one in drafts[1:]] == ["four", "four", "four, surely"]
    assert drafts[2].energy_val == 1.0
    assert "HTTP 503" in drafts[2].x["error"]
    assert 0 < drafts[3].energy_val < 0.5
    server.close()


def test_health_comes_back_with_the_server(unused_address: str) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "model_name": "m", **LIMITS})
    assert plugin.health_check() is False
    assert plugin.get_response("Hi").startswith("[OmniIRP: ")
    ok = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        + json.dumps(whole("back")).encode()
    )
    server = Raw(says(ok, then_silent=False), port=int(unused_address.rpartition(":")[2]))
    assert plugin.health_check() is True
    assert plugin.get_response("Hi") == "back"
    server.close()


BAD = {
    "endpoint": ["host:8091", 5, "ftp://host", "http://", "http://host:port", "http://host:99999", "http://[", ""],
    "api_key": [5, "line\nbreak", "ключ"],
    "model_name": [5, None],
    "temperature": ["warm", -1, float("nan"), True],
    "timeout_seconds": ["soon", 0, -1, float("inf"), None],
    "connect_seconds": [0, "x"],
    "max_response_tokens": [0, 1.5, "many"],
    "one_shot": ["yes", 1],
    "speech": ["no"],
    "extra_body": [[], "x", {"x": object()}, {"x": float("nan")}],
    "max_iterations": [-1, "x", 2.5],
    "halt_K": [0, "x"],
    "halt_eps": ["x", -1],
    "trust_weight": ["x"],
    "max_media_mb": ["x"],
    "metrics_seconds": [-1],
    "refine_prompt": [None],
    "system_prompt": [3],
    "voice": [3],
    "speech_folder": [3],
}


def test_every_key_is_tried() -> None:
    assert BAD.keys() == irp.CONFIG.keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_config_value_that_does_not_fit(unused_address: str, key: str, value: Any) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "model_name": "m", **LIMITS, key: value})
    all_tagged(plugin)
    assert plugin.health_check() is False
    _, history = plugin.refine("Hi")
    assert plugin.emit_telemetry(history[-1], history)["E"] == 1.0
    told = plugin.get_response("Hi")
    assert (
        f'config "{key}" must be' in told
        or key in ("api_key", "extra_body")
        or str(value)[:8] in ("http://h", "http://[")
    )


def test_a_login_in_the_address_is_not_shown() -> None:
    told = irp.OmniIRP({"endpoint": "http://me:secret@127.0.0.1:1"}).get_response("Hi")
    assert "without user or password" in told
    assert "secret" not in told


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


def broken(step: int) -> float:
    return 1 / step


def test_what_sage_hands_over_may_be_broken(unused_address: str) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "model_name": "m", **LIMITS})
    assert "division by zero" in plugin.step(plugin.init_state("Hi"), broken).x["response"]
    assert plugin.step(irp.IRPState(x="Hi", meta=None)).energy_val == 1.0
    assert "no words for it" in plugin.get_response({"text": Unspeakable()})


@pytest.mark.parametrize("key", ["timeout_seconds", "connect_seconds", "metrics_seconds", "max_media_mb"])
def test_a_number_beyond_all_bounds(unused_address: str, key: str) -> None:
    all_tagged(irp.OmniIRP({"endpoint": unused_address, key: 1e300}))


def test_a_config_that_is_none() -> None:
    for config in (None, "x", []):
        assert irp.OmniIRP(config).config["halt_K"] == 3


@pytest.mark.parametrize(
    "given", ["missing.png", "", "/dev/zero", ".", b"", "nul\0byte", 5, ["a"], {}, b"x" * 2_000_000]
)
@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_media_that_cannot_be_read(unused_address: str, kind: str, given: Any) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "max_media_mb": 1})
    state = plugin.step(plugin.init_state({"text": "What is it?", kind: given}, {}))
    assert state.energy_val == 1.0
    assert f"The {kind}" in state.x["response"]
    assert len(state.x["response"]) < 500


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "The audio" in irp.OmniIRP().get_response({"audio": tmp_path / "pipe"})


@pytest.mark.parametrize(
    "x0", [None, 5, b"bytes", [], {}, {"text": ""}, "", "  ", {"text": None}, {"memory": 5, "text": "a"}]
)
def test_a_task_that_is_none(unused_address: str, x0: Any) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "model_name": "m"})
    state, history = plugin.refine(x0)
    assert state.x["response"].startswith("[OmniIRP: ")
    assert plugin.get_halt_reason(history) == "slope<eps"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        5,
        [5],
        [{"role": "user", "content": b"bytes"}],
        [{"tool_calls": 5}],
        [{"tool_calls": [5]}],
        [{"tool_calls": [{}]}],
    ],
)
def test_messages_that_are_none(unused_address: str, messages: Any) -> None:
    plugin = irp.OmniIRP({"endpoint": unused_address, "model_name": "m"})
    assert plugin.generate_response(messages).startswith("[OmniIRP: ")
    assert plugin.get_chat_response(messages, tools={"not": object()})["content"].startswith("[OmniIRP: ")
    assert list(plugin.stream_response(messages))[-1].startswith("[OmniIRP: ")


def test_answers_at_random(raw: Callable[..., str]) -> None:
    """Pieces of real answers, cut and mixed: whatever comes is text or a tagged text, never an exception."""
    draw = random.Random(5)
    stock = [STREAM_HEAD, CHUNKED, JSON_HEAD, event("a", finish="stop"), event("AAA=", "audio"), b"data: [DONE]\n\n"]
    stock += [b"\r\n", b"5\r\n", b"data: ", b"\xff\xfe", json.dumps(whole("a")).encode(), b"{", b"0\r\n\r\n"]
    talks = iter([b"".join(draw.choices(stock, k=draw.randrange(1, 6)))[: draw.randrange(1, 400)] for _ in range(400)])
    lock = threading.Lock()

    def behave(connection: socket.socket) -> None:
        with lock:
            talk = next(talks, b"")
        connection.sendall(draw.choice(stock[:3]) + talk)

    for speech in (True, False):
        plugin = irp.OmniIRP({"endpoint": raw(behave), "model_name": "m", "speech": speech, **LIMITS})
        for _ in range(40):
            state = plugin.step(plugin.init_state("Hi", {}))
            assert isinstance(state.x["response"], str)
            assert 0 < state.energy_val <= 1
            assert all(isinstance(piece, str) for piece in plugin.stream_response("Hi"))
            assert isinstance(plugin.get_chat_response([])["content"], str)
