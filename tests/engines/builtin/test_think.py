"""The real language model: it answers, keeps conversations apart, fits its context, and stops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from omni_app.engines.builtin.assets import SMOLLM2, fetch
from omni_app.engines.builtin.generation import Thought, Turn
from omni_app.engines.builtin.think import Thinker, shortened, system_prompt, that_may_fit
from omni_app.errors import BadRequest, EngineUnavailable
from omni_app.settings import Settings

pytestmark = pytest.mark.models

SYSTEM = Turn(role="system", content=system_prompt(speech=False))


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch(SMOLLM2, Settings().cache_dir)


@pytest.fixture(scope="module")
def thinker(model: Path) -> Iterator[Thinker]:
    thinker = Thinker()
    thinker.load(model)
    yield thinker
    thinker.close()


def ask(thinker: Thinker, *turns: Turn, **options: object) -> tuple[str, Thought]:
    said: list[str] = []
    thought = thinker.think([SYSTEM, *turns], said.append, seed=1, temperature=0.0, **options)  # type: ignore[arg-type]
    return "".join(said), thought


def user(text: str) -> Turn:
    return Turn(role="user", content=text)


def test_answers_and_counts(thinker: Thinker) -> None:
    text, thought = ask(thinker, user("What is the capital of Japan?"))
    assert "Tokyo" in text
    assert thought.reason == "stop"
    assert thought.prompt_tokens
    assert thought.prompt_tokens > 20
    assert thought.completion_tokens
    assert thought.completion_tokens > 3


def test_the_token_limit_cuts(thinker: Thinker) -> None:
    _, thought = ask(thinker, user("Write a long story about a ship."), max_tokens=5)
    assert thought == Thought("length", thought.prompt_tokens, 5)


def test_more_conversations_than_slots_do_not_mix(thinker: Thinker) -> None:
    capitals = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin"}
    asked = list(capitals.items()) * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda item: ask(thinker, user(f"What is the capital of {item[0]}?"))[0], asked))
    for (_, capital), answer in zip(asked, answers, strict=True):
        assert capital in answer
        assert not any(other in answer for other in set(capitals.values()) - {capital})


def test_old_turns_are_left_out_when_all_do_not_fit(thinker: Thinker) -> None:
    chatter = [Turn(role=role, content=f"Number {n}. " * 30) for n in range(12) for role in ("user", "assistant")]
    text, thought = ask(thinker, *chatter, user("What is the capital of Italy?"), max_tokens=20)
    assert thought.reason in ("stop", "length")
    assert thought.prompt_tokens
    assert 300 < thought.prompt_tokens <= 1024
    assert text


@pytest.mark.parametrize("repeats", [1000, 20_000])
def test_one_message_too_long_names_the_limit(thinker: Thinker, repeats: int) -> None:
    with pytest.raises(BadRequest, match=r"at most 1,984 tokens .* shorten") as caught:
        ask(thinker, user("hello there " * repeats))
    assert f"{len('hello there ' * repeats):,}" in str(caught.value)


@pytest.mark.parametrize("after_words", [0, 3])
def test_a_stop_ends_it_in_the_prefill_and_in_the_answer(thinker: Thinker, after_words: int) -> None:
    cancelled, said = threading.Event(), []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == after_words:
            cancelled.set()

    if after_words == 0:
        cancelled.set()
    turns = [SYSTEM, user(f"{after_words} tell me about ships. " * 100)]
    thought = thinker.think(turns, say, max_tokens=200, cancelled=cancelled.is_set)
    assert thought.reason == "cancelled"
    assert len(said) == after_words


def test_closing_ends_answers_and_refuses_new_ones(model: Path) -> None:
    thinker = Thinker(slots=1, context_tokens=512)
    thinker.load(model)
    assert thinker._folder is not None
    folder = thinker._folder.path
    assert folder.stat().st_mode & 0o077 == 0
    talking = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(thinker.think, [user("Count to a thousand.")], lambda _: talking.set(), max_tokens=400)
        waiting = pool.submit(thinker.think, [user("Hello?")], lambda _: None)
        talking.wait(60)
        thinker.close()
        assert {endless.result().reason, waiting.result().reason} <= {"cancelled", "stop"}
    assert not folder.exists()
    thinker.close()
    with pytest.raises(EngineUnavailable):
        thinker.think([user("Hi")], lambda _: None)


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "poem.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(EngineUnavailable, match=r"poem\.gguf could not be loaded.*OMNI_BUILTIN_MODEL"):
        Thinker().load(path)


def test_a_failed_load_can_be_repeated_with_a_good_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    thinker = Thinker(slots=1, context_tokens=512)
    with pytest.raises(EngineUnavailable):
        thinker.load(path)
    path.unlink()
    path.symlink_to(model)
    thinker.load(path)
    try:
        assert "Tokyo" in ask(thinker, user("What is the capital of Japan?"))[0]
    finally:
        thinker.close()


class Counting:
    """The server, with a look at how much it is asked to tokenise."""

    def __init__(self, thinker: Thinker) -> None:
        self.server, self.prompts = thinker._server, list[int]()

    def handle_chat_completions(self, request: dict[str, Any], run: Callable[[dict[str, Any]], bool]) -> object:
        self.prompts.append(sum(len(turn["content"]) for turn in request["messages"]))
        return self.server.handle_chat_completions(request, run)


@pytest.mark.parametrize("word", ["hello ", "\N{CJK UNIFIED IDEOGRAPH-9F98}"], ids=["short", "many-tokens"])
def test_a_huge_history_is_hardly_tokenised(thinker: Thinker, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = ("user", "assistant") * 200
    huge = [Turn(role=role, content=word * 3000) for role in roles[:-40]]
    short = [Turn(role=role, content=word * 30) for role in roles[-40:]]
    counting = Counting(thinker)
    monkeypatch.setattr(thinker, "_server", counting)
    _, thought = ask(thinker, *huge, *short, user("What is the capital of Italy?"), max_tokens=5)
    assert thought.completion_tokens
    assert thought.prompt_tokens
    assert 300 < thought.prompt_tokens <= 1024
    assert len(counting.prompts) <= 3
    assert sum(counting.prompts) < 20_000


def test_what_may_fit_ends_with_the_last_exchange() -> None:
    prompts = shortened([SYSTEM, *(user("x" * 100) for _ in range(9))])
    assert that_may_fit(prompts, 10_000) == prompts
    assert that_may_fit(prompts, 0) == [[SYSTEM, user("x" * 100)]]
    assert sum(len(turn["content"]) for turn in that_may_fit(prompts, 450)[0]) <= 450
