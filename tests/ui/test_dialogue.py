"""Question and answer stay in order, whatever a visitor does at once; files go with the turns that had them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from omni_app.conversation import Event, Message, Part, ReplyOptions, TextDelta
from omni_app.runner import Runner
from omni_app.turnstile import Turnstile
from omni_app.ui.dialogue import Change, Dialogues, without_last_answer
from omni_app.ui.live import LiveReply, Replies
from omni_app.ui.store import Conversation, Store, Turn
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio
SPEAKING = ReplyOptions()


class House:
    def __init__(self, folder: Path, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine(word_seconds=0.01)
        self.runner = Runner(self.engine, "", 8)
        self.store, self.replies = Store(folder), Replies()
        self.dialogues = Dialogues(self.runner, self.store, self.replies)
        self.conversation: Conversation = self.store.new("a" * 32)

    async def say(self, change: Change) -> LiveReply:
        reply, problem = await self.dialogues.answer(self.conversation, change, SPEAKING, "")
        assert problem == ""
        return reply


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    house.runner.start()
    yield house
    await house.runner.close()


async def ended(reply: LiveReply) -> None:
    async with asyncio.timeout(10):
        while not reply.done:
            await reply.wait(1)


def asking(text: str, *media: Part) -> Change:
    return lambda turns: turns.append(Turn("user", text, list(media)))


async def test_six_questions_at_once_are_kept_in_order_each_with_its_answer(house: House) -> None:
    replies = await asyncio.gather(*(house.say(asking(f"slow question {number}")) for number in range(6)))
    await ended(replies[-1])
    roles = [turn.role for turn in house.conversation.turns]
    assert roles == ["user", "assistant"] * 6
    texts = [turn.text for turn in house.conversation.turns if turn.role == "user"]
    assert texts == [f"slow question {number}" for number in range(6)]
    assert house.conversation.turns[-1].text == "echo: slow question 5 "
    assert all(reply.done for reply in replies)
    assert house.engine.working == 0


class Reluctant(ScriptedEngine):
    """Lets go of an answer only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__(word_seconds=0.01)
        self.may_let_go = asyncio.Semaphore(0)

    async def _events(self, message: Message, options: ReplyOptions) -> AsyncGenerator[Event, None]:
        try:
            async for event in super()._events(message, options):
                yield event
        finally:
            await self.may_let_go.acquire()


async def test_a_question_waits_for_those_before_it_also_when_it_comes_while_one_of_them_gets_its_turn(
    tmp_path: Path,
) -> None:
    engine = Reluctant()
    house = House(tmp_path, engine)
    house.runner.start()
    first = await house.say(asking("slow long question 0"))
    await first.wait(5)
    asked = [asyncio.create_task(house.say(asking("slow long question 1")))]
    asked.append(asyncio.create_task(house.say(asking("question 2"))))
    await asyncio.sleep(0)  # the first of them waits for the engine to let go, the second for the first
    engine.may_let_go.release()
    await (await asked[0]).wait(5)
    asked.append(asyncio.create_task(house.say(asking("question 3"))))
    await asyncio.sleep(0)
    for _ in range(3):
        engine.may_let_go.release()
    for one in await asyncio.gather(*asked):
        await ended(one)
    assert [turn.role for turn in house.conversation.turns] == ["user", "assistant"] * 4
    await house.runner.close()


async def test_a_question_at_the_very_moment_in_which_an_answer_ends_comes_after_it(tmp_path: Path) -> None:
    over = asyncio.Event()

    class Waiting(ScriptedEngine):
        async def _events(self, message: Message, options: ReplyOptions) -> AsyncGenerator[Event, None]:
            yield TextDelta(message.text)
            await over.wait()

    async def at_the_end() -> LiveReply:
        await over.wait()
        return await house.say(asking("second"))

    house = House(tmp_path, Waiting())
    house.runner.start()
    first = await house.say(asking("first"))
    await first.wait(5)
    second = asyncio.create_task(at_the_end())
    await asyncio.sleep(0)
    over.set()
    await ended(await second)
    assert [turn.text for turn in house.conversation.turns] == ["first", "first", "second", "second"]
    await house.runner.close()


async def test_retry_replaces_the_answer_and_its_file(house: House) -> None:
    await ended(await house.say(asking("hello")))
    old = house.conversation.turns[-1].speech
    assert old is not None
    assert old.exists()
    await ended(await house.say(without_last_answer))
    assert [turn.role for turn in house.conversation.turns] == ["user", "assistant"]
    assert not old.exists()
    assert house.conversation.turns[-1].files()[0].exists()


async def test_clearing_takes_every_file_and_stops_the_answer(house: House, tmp_path: Path) -> None:
    picture = tmp_path / "p.jpg"
    picture.write_bytes(b"jpeg")
    await ended(await house.say(asking("look", Part("image", path=picture))))
    await house.say(asking("slow long story"))
    async with house.dialogues.alone(house.conversation):
        assert house.engine.working == 0
        house.dialogues.change(house.conversation, list.clear)
    assert house.conversation.turns == []
    assert not picture.exists()
    assert list(house.conversation.media_folder.iterdir()) == []


async def test_full_disk_is_told_and_the_answer_is_made(house: House, tmp_path: Path) -> None:
    (tmp_path / "visitors").write_text("a file where the folder should be")
    reply, problem = await house.dialogues.answer(house.conversation, asking("hello"), SPEAKING, "")
    assert "could not be saved" in problem
    await ended(reply)
    assert house.conversation.turns[-1].text == "echo: hello "
    assert "was not kept" in house.conversation.turns[-1].note


async def test_who_is_signed_in_counts_as_one_in_every_browser(house: House) -> None:
    dialogues = Dialogues(house.runner, house.store, house.replies, Turnstile(per_minute=1))
    notes = []
    for visitor, person in (("a", "ann"), ("b", "ann"), ("c", "bob"), ("d", ""), ("e", "")):
        reply, _ = await dialogues.answer(house.store.new(visitor * 32), asking("hello"), SPEAKING, "", person)
        await ended(reply)
        notes.append("within a minute" in reply.note)
    assert notes == [False, True, False, False, False]
