"""SAGE's plugin as SAGE uses it: the contract under both base classes, and the calls of SAGE's two loops."""

import base64
import gzip
import itertools
import json
import random
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from omni_app.conversation import AudioDelta
from omni_app.wire import ReplyDecoder
from tests.irp_scripted import PLUGIN, Answer, Raw, Scripted, dropped_into_sage, event, load, whole

RECORDED = Path(__file__).parent / "data" / "vllm_omni_0_30" / "streams"
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
Serving = Callable[[Callable[[dict[str, Any]], Answer]], Scripted]


@pytest.fixture
def serving() -> Iterator[Serving]:
    servers: list[Scripted] = []

    def start(answer: Callable[[dict[str, Any]], Answer]) -> Scripted:
        servers.append(Scripted(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module", params=["own base", "SAGE's base"])
def irp(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    inside = dropped_into_sage(tmp_path_factory.mktemp("repository"))
    module = load(PLUGIN if request.param == "own base" else inside)
    assert (module.IRPPlugin is module.OwnPlugin) is (request.param == "own base")
    return module


def settling(drafts: list[str]) -> Callable[[dict[str, Any]], Answer]:
    """One draft after another; the last is repeated for ever."""
    said = itertools.chain(drafts, itertools.repeat(drafts[-1]))
    return lambda request: whole(next(said))


def restless() -> Callable[[dict[str, Any]], Answer]:
    """Never two drafts that differ by the same amount."""
    word = random.Random(3)
    return lambda request: whole("".join(word.choices("abcdefghij ", k=word.randrange(20, 400))))


class TestContract:
    def test_a_state(self, irp: ModuleType) -> None:
        state = irp.OmniIRP({"entity_id": "omni-1"}).init_state("What is 2 + 2?", {"objective": "be brief"})
        assert isinstance(state, irp.IRPState)
        assert (state.step_idx, state.energy_val) == (0, 1.0)
        assert isinstance(state.meta, dict)
        assert isinstance(state.timestamp, float)
        assert state.x["response"] == ""

    def test_the_defaults(self, irp: ModuleType) -> None:
        plugin = irp.OmniIRP({"entity_id": "omni-1", "trust_weight": 0.3})
        assert (plugin.entity_id, plugin.trust_weight) == ("omni-1", 0.3)
        assert [plugin.config[key] for key in ("max_iterations", "halt_eps", "halt_K")] == [100, 1e-4, 3]
        assert irp.OmniIRP().entity_id.startswith("OmniIRP_")

    def test_a_settled_answer_halts_by_slope(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["It is five.", "It is four, as 2 + 2 = 4.", "It is four."]))
        plugin = irp.OmniIRP({"endpoint": server.address})
        state, history = plugin.refine("What is 2 + 2?", {"constraints": "one sentence", "cycle": 7})
        assert plugin.get_halt_reason(history) == "slope<eps"
        assert state.x["response"] == "It is four."
        energies = [one.energy_val for one in history]
        assert energies[:2] == [1.0, 0.5]
        assert 0 < energies[-1] == min(energies)
        assert energies[-4:] == [energies[-1]] * 4
        assert [one.step_idx for one in history] == list(range(len(history)))
        assert len({id(one) for one in history}) == len({id(one.x) for one in history}) == len(history) == 8
        assert len(server.asked) == 7

    def test_a_step_asks_to_improve_the_draft_against_the_task(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["five", "four"]))
        plugin = irp.OmniIRP({"endpoint": server.address, "system_prompt": "You are SAGE."})
        plugin.refine("What is 2 + 2?", {"constraints": "one word", "cycle": 7}, max_steps=2)
        first, second = (request["messages"] for request in server.asked)
        assert first[0] == {"role": "system", "content": "You are SAGE.\nconstraints: one word"}
        assert first[1:] == [{"role": "user", "content": "What is 2 + 2?"}]
        assert second[:2] == first
        assert second[2] == {"role": "assistant", "content": "five"}
        assert second[3]["role"] == "user"
        assert "Improve" in second[3]["content"]
        assert all(request["modalities"] == ["text"] for request in server.asked)

    def test_a_restless_answer_halts_by_maximum(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(restless())
        plugin = irp.OmniIRP({"endpoint": server.address, "max_iterations": 9})
        _, history = plugin.refine("Say something else.")
        assert plugin.get_halt_reason(history) == "max_steps"
        assert len(history) == 9
        assert all(0 < one.energy_val <= 0.5 for one in history[1:])

    def test_halting_needs_k_and_one_states(self, irp: ModuleType) -> None:
        plugin = irp.OmniIRP({"halt_K": 4})
        states = [irp.IRPState(x={}, energy_val=0.25) for _ in range(5)]
        assert [plugin.halt(states[:count]) for count in range(6)] == [False] * 5 + [True]

    def test_energy_is_pure_and_never_zero(self, irp: ModuleType, serving: Serving) -> None:
        plugin = irp.OmniIRP({"endpoint": serving(settling(["same"])).address})
        state = plugin.step(plugin.step(plugin.init_state("x", {})))
        before = json.dumps(state.x)
        assert plugin.energy(state) == plugin.energy(state) == state.energy_val
        assert 0 < state.energy_val < 0.01
        assert json.dumps(state.x) == before
        for x in ("", None, 3, {}, {"response": "hm"}, {"draft": "a", "change": 0.0}, {"draft": "a"}):
            assert 0 < plugin.energy(irp.IRPState(x=x)) <= 1

    def test_one_shot_asks_once(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["four", "never"]))
        plugin = irp.OmniIRP({"endpoint": server.address, "one_shot": True})
        state, history = plugin.refine("2 + 2?")
        assert state.x["response"] == "four"
        assert plugin.get_halt_reason(history) == "slope<eps"
        assert len(server.asked) == 1

    def test_a_noise_schedule_is_the_temperature(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["a"]))
        plugin = irp.OmniIRP({"endpoint": server.address, "temperature": 0.7})
        state = plugin.step(plugin.init_state("x", {}), noise_schedule=lambda step: 1.0 / (1 + step))
        state = plugin.step(state, noise_schedule=lambda step: 1.0 / (1 + step))
        plugin.step(plugin.step(state, 0.25))
        assert [request["temperature"] for request in server.asked] == [1.0, 0.5, 0.25, 0.7]

    def test_telemetry_carries_the_servers_memory(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["four"]))
        plugin = irp.OmniIRP({"endpoint": server.address, "entity_id": "omni-1", "LRC_context": {"a": 1}})
        state, history = plugin.refine("2 + 2?")
        told = plugin.emit_telemetry(state, history)
        assert told["budget"]["memory_mb"] == 200.0
        assert (told["entity_id"], told["plugin"], told["steps"]) == ("omni-1", "omniirp", len(history))
        assert (told["halt_reason"], told["dE"], told["LRC_context"]) == ("slope<eps", 0.0, {"a": 1})
        assert told["trust"]["monotonicity_ratio"] > 0
        assert json.loads(json.dumps(told)) == told
        assert server.paths.count("/metrics") == 1

    def test_a_server_without_figures(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["four"]))
        server.metrics = "process_resident_memory_bytes much\n"
        plugin = irp.OmniIRP({"endpoint": server.address})
        assert plugin.step(plugin.init_state("x", {})).meta["memory_mb"] == 0.0


class TestConsciousnessLoop:
    def test_init_state_and_one_step(self, irp: ModuleType, serving: Serving) -> None:
        """How the loop invokes a plugin: one step, and `x['response']` of what it gives."""
        server = serving(settling(["Hello, I am Thor."]))
        plugin = irp.OmniIRP({"endpoint": server.address})
        memory = [{"role": "user", "content": "earlier"}, {"speaker": "nobody"}]
        state = plugin.step(plugin.init_state({"prompt": "Who are you?", "memory": memory}, {}))
        assert state.x.get("response", str(state.x)) == "Hello, I am Thor."
        assert [one["content"] for one in server.asked[0]["messages"]] == ["earlier", "Who are you?"]

    def test_a_state_that_was_made_elsewhere(self, irp: ModuleType, serving: Serving) -> None:
        plugin = irp.OmniIRP({"endpoint": serving(settling(["Yes."])).address})
        for x in ("Are you there?", {"prompt": "Are you there?", "response": ""}):
            assert plugin.step(irp.IRPState(x=x)).x["response"] == "Yes."

    def test_the_orchestrators_budget(self, irp: ModuleType, serving: Serving) -> None:
        plugin = irp.OmniIRP({"endpoint": serving(restless()).address})
        plugin.config["max_iterations"] = int(0.45 * 10)
        assert len(plugin.refine("x", {})[1]) == 4
        plugin.config["max_iterations"] = 0
        assert len(plugin.refine("x", {})[1]) == 1
        assert not plugin.get_response("x").startswith("[")

    def test_the_pool_does_not_ask_ollama_about_it(self, irp: ModuleType) -> None:
        """The pool takes what has a `model_path` as a local model, whose health Ollama cannot deny."""
        plugin = irp.OmniIRP({"model_name": "qwen3-omni"})
        assert plugin.model_name == "qwen3-omni"
        assert hasattr(plugin, "model_path")
        assert not hasattr(plugin, "generate")

    def test_get_response_and_health(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling([" Paris. \n"]))
        plugin = irp.OmniIRP({"endpoint": server.address + "/v1/", "api_key": "s3cret", "max_response_tokens": 9})
        assert plugin.get_response("The capital of France?") == "Paris."
        assert plugin.health_check() is True
        assert server.headers[0]["Authorization"] == "Bearer s3cret"
        assert (server.asked[0]["model"], server.asked[0]["max_tokens"]) == ("tiny", 9)
        server.health = 503
        assert plugin.health_check() is False

    def test_tools_pass_and_their_calls_come_back(self, irp: ModuleType, serving: Serving) -> None:
        call = {"id": "call_9", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
        server = serving(lambda request: whole(None, tool_calls=[call]))
        plugin = irp.OmniIRP({"endpoint": server.address, "speech": True})
        answer = plugin.get_chat_response([{"role": "user", "content": "Look!"}], tools=TOOLS)
        assert set(answer) == {"content", "tool_calls", "role", "raw"}
        assert (answer["content"], answer["tool_calls"], answer["role"]) == ("", [call], "assistant")
        raw = answer["raw"]
        assert raw["choices"][0]["message"]["tool_calls"] == [call]
        assert (raw["done_reason"], raw["prompt_eval_count"], raw["eval_count"]) == ("stop", 11, 7)
        assert server.asked[0]["tools"] == TOOLS
        assert server.asked[0]["modalities"] == ["text"]
        plugin.get_chat_response([{"role": "user", "content": "Hi"}])
        assert "tools" not in server.asked[1]

    def test_sages_tool_turns_are_completed_for_the_server(self, irp: ModuleType, serving: Serving) -> None:
        """SAGE's tool loop writes Ollama's form: open arguments, and no id."""
        server = serving(settling(["done"]))
        turns = [
            {"role": "user", "content": "Look!"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "blue"},
        ]
        kept = json.dumps(turns)
        irp.OmniIRP({"endpoint": server.address}).get_chat_response(turns)
        (sent,) = server.asked[0]["messages"][1]["tool_calls"]
        assert (sent["type"], bool(sent["id"])) == ("function", True)
        assert sent["function"] == {"name": "look", "arguments": '{"a": 1}'}
        assert json.dumps(turns) == kept

    def test_a_retry_with_more_room(self, irp: ModuleType, serving: Serving) -> None:
        """SAGE's tool loop sets this attribute for one retry."""
        server = serving(settling(["x"]))
        plugin = irp.OmniIRP({"endpoint": server.address})
        plugin.max_response_tokens = 6000
        plugin.get_chat_response([{"role": "user", "content": "Hi"}])
        assert server.asked[0]["max_tokens"] == 6000


class TestConversationManager:
    def test_sampling_arrives(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["Hi."]))
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
        plugin = irp.OmniIRP({"endpoint": server.address})
        assert plugin.generate_response(turns, max_new_tokens=40, temperature=0.1, top_k=5, top_p=0.5) == "Hi."
        assert plugin.generate_response(turns) == "Hi."
        sent = [[one[key] for key in ("max_tokens", "temperature", "top_k", "top_p")] for one in server.asked]
        assert sent == [[40, 0.1, 5, 0.5], [300, 0.8, 50, 0.95]]
        assert server.asked[0]["messages"] == turns

    def test_errors_of_ours_are_not_told_to_the_model(self, irp: ModuleType, serving: Serving) -> None:
        server = serving(settling(["Hi."]))
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[OmniIRP: down]"}]
        irp.OmniIRP({"endpoint": server.address}).generate_response([*turns, {"role": "user", "content": "b"}])
        assert [one["content"] for one in server.asked[0]["messages"]] == ["a", "b"]


class TestSenses:
    def test_media_go_as_data_urls_in_the_servers_dialect(
        self, irp: ModuleType, serving: Serving, tmp_path: Path
    ) -> None:
        server = serving(settling(["seen"]))
        picture = tmp_path / "p.png"
        picture.write_bytes(b"\x89PNG picture")
        task = {"text": "What is this?", "image": str(picture), "audio": b"RIFF sound", "video": picture}
        plugin = irp.OmniIRP({"endpoint": server.address})
        picture_gone = plugin.init_state(task, {})
        picture.unlink()
        assert plugin.step(picture_gone).x["response"] == "seen"
        parts = server.asked[0]["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["image_url", "audio_url", "video_url", "text"]
        sent = [base64.b64decode(part[part["type"]]["url"].partition(";base64,")[2]) for part in parts[:3]]
        assert sent == [b"\x89PNG picture", b"RIFF sound", b"\x89PNG picture"]
        assert all(part[part["type"]]["url"].startswith(f"data:{part['type'][:5]}/") for part in parts[:3])
        assert irp.OmniIRP({"endpoint": server.address}).get_response({"image": b"x"}) == "seen"

    def test_speech_is_a_wav_file(self, irp: ModuleType, serving: Serving, tmp_path: Path) -> None:
        pcm = bytes(range(256)) * 20
        sound = {"audio_metadata": {"sample_rate_hz": 24_000, "format": "pcm", "channels": 1}}
        pieces = [event(base64.b64encode(one).decode(), "audio", **sound) for one in (pcm[:1000], pcm[1000:])]
        stream = event("Hel") + pieces[0] + event("lo.") + pieces[1] + event("", "audio", "stop") + b"data: [DONE]\n\n"
        server = serving(lambda request: stream)
        config = {"endpoint": server.address, "speech": True, "voice": "ethan", "speech_folder": str(tmp_path)}
        plugin = irp.OmniIRP(config)
        state, history = plugin.refine("Say hello.")
        assert state.x["response"] == "Hello."
        assert state.x["speech"] == plugin.last_speech
        with wave.open(state.x["speech"]) as wav:
            assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 24_000)
            assert wav.readframes(wav.getnframes()) == pcm
        asked = server.asked[0]
        assert (asked["voice"], asked["audio"], asked["modalities"]) == ("ethan", {"format": "pcm"}, ["text", "audio"])
        assert len(history) > 1
        for _ in range(30):
            plugin.get_response("again")
        assert len(list(tmp_path.iterdir())) == 20

    @pytest.mark.parametrize("name", ["text_audio_pcm", "text_audio_voice_ethan"])
    def test_the_speech_of_a_recorded_vllm_omni(self, irp: ModuleType, serving: Serving, name: str) -> None:
        raw = gzip.decompress((RECORDED / f"{name}.sse.gz").read_bytes())
        events = list(ReplyDecoder().feed(raw))
        plugin = irp.OmniIRP({"endpoint": serving(lambda request: raw).address, "speech": True})
        state = plugin.step(plugin.init_state("Say hello.", {}))
        with wave.open(state.x["speech"]) as wav:
            said = wav.readframes(wav.getnframes())
        assert said == b"".join(one.pcm for one in events if isinstance(one, AudioDelta))
        assert state.x["error"] == ""

    def test_speech_that_cannot_be_kept_costs_no_text(
        self, irp: ModuleType, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = event("Hi.") + event("AAAA", "audio", "stop") + b"data: [DONE]\n\n"
        (tmp_path / "file").touch()
        config = {"speech": True, "speech_folder": str(tmp_path / "file")}
        plugin = irp.OmniIRP({"endpoint": serving(lambda request: stream).address, **config})
        assert (plugin.get_response("x"), plugin.last_speech) == ("Hi.", "")
        assert "could not be written" in caplog.text

    def test_folder_for_speech_is_made(self, irp: ModuleType, serving: Serving, tmp_path: Path) -> None:
        stream = event("Hi.") + event("AAAA", "audio", "stop") + b"data: [DONE]\n\n"
        config = {"speech": True, "speech_folder": str(tmp_path / "not" / "yet")}
        plugin = irp.OmniIRP({"endpoint": serving(lambda request: stream).address, **config})
        assert plugin.get_response("x") == "Hi."
        assert Path(plugin.last_speech).parent == tmp_path / "not" / "yet"


class TestStreaming:
    def test_text_comes_in_pieces(self, irp: ModuleType, serving: Serving) -> None:
        stream = b": hello\n\n" + event("Grüß ") + event("Gott! ") + event("你好", finish="stop") + b"data: [DONE]\n\n"
        server = serving(lambda request: stream)
        plugin = irp.OmniIRP({"endpoint": server.address})
        assert list(plugin.stream_response([{"role": "user", "content": "Hi"}])) == ["Grüß ", "Gott! ", "你好"]
        assert list(plugin.stream_response("Hi")) == ["Grüß ", "Gott! ", "你好"]
        assert [one["stream"] for one in server.asked] == [True, True]

    def test_a_server_that_does_not_stream(self, irp: ModuleType, serving: Serving) -> None:
        plugin = irp.OmniIRP({"endpoint": serving(settling(["All at once."])).address})
        assert list(plugin.stream_response("Hi")) == ["All at once."]

    def test_pieces_come_before_the_end_and_closing_hangs_up(self, irp: ModuleType) -> None:
        gone = threading.Event()

        def behave(connection: Any) -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            connection.sendall(head + event("first"))
            assert connection.recv(1) == b""
            gone.set()

        server = Raw(behave)
        reply = irp.OmniIRP({"endpoint": server.address, "model_name": "m"}).stream_response("Hi")
        assert next(reply) == "first"
        reply.close()
        assert gone.wait(10)
        server.close()


def test_two_hundred_steps_leak_nothing(serving: Serving) -> None:
    import tracemalloc

    server = serving(restless())
    plugin = load().OmniIRP({"endpoint": server.address, "metrics_seconds": 0})
    state = plugin.step(plugin.init_state({"text": "x", "image": b"p" * 10**6}, {}))
    process, threads = psutil.Process(), threading.active_count()
    sockets = len(process.net_connections())
    tracemalloc.start()
    history = []
    for _ in range(200):
        state = plugin.step(state)
        history.append(state)
        server.asked.clear()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert {id(one.x["messages"]) for one in history} == {id(state.x["messages"])}
    assert grown < 8e6
    assert threading.active_count() <= threads + 4
    assert len(process.net_connections()) <= sockets + 8
