"""What happens when a visitor does something. Handlers yield `{widget name: update}`; `page.py` has the widgets."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from omni_app.conversation import Part, ReplyOptions, clean
from omni_app.errors import BadRequest, OmniError, unkept
from omni_app.hub_login import person_of
from omni_app.media import Limits, check_count, check_text, ingest
from omni_app.ui import render
from omni_app.ui.dialogue import Change, Dialogues, without_last_answer, without_last_question
from omni_app.ui.live import LiveReply, Replies
from omni_app.ui.speech import Utterances
from omni_app.ui.store import Conversation, Store, Turn
from omni_app.ui.tabs import Tabs, visitor_of

Update = dict[str, Any]
Updates = AsyncGenerator[Update, None]

FASTEST_UPDATE_SECONDS = 0.2
LEFT_ALONE_SECONDS = 20.0
SILENCE: Update = {"run": "", "busy": False, "speech": False}
EMPTIED: Update = {"box": {"text": "", "files": []}}
"""The page keeps what is written and was not sent."""
AUTOMATIC = "automatic"


@dataclass(frozen=True, slots=True)
class Wishes:
    """The settings panel, in the order its widgets are passed to a handler."""

    speech: bool = True
    voice_name: str = AUTOMATIC
    max_tokens: int = 0
    """0 leaves it to the engine."""
    temperature: float = 0.2
    system_prompt: str = ""

    def options(self) -> ReplyOptions:
        return ReplyOptions(
            speech=self.speech,
            voice=None if self.voice_name in ("", None, AUTOMATIC) else clean(self.voice_name),
            max_tokens=int(self.max_tokens) or None,
            temperature=float(self.temperature),
        )


class Chat:
    """The conversations of every visitor, as the page sees them."""

    def __init__(
        self, dialogues: Dialogues, store: Store, replies: Replies, utterances: Utterances, limits: Limits
    ) -> None:
        self._dialogues = dialogues
        self._store = store
        self._replies = replies
        self._utterances = utterances
        self._limits = limits
        self._tabs = Tabs(store)

    async def send(self, request: gr.Request, box: dict[str, Any], key: str, *wishes: Any) -> Updates:
        """A typed message with its files. What cannot be taken is refused with its reason and stays in the box."""
        conversation = self._tabs.opened(request, key)
        text = clean(str(box.get("text") or "")).strip()
        try:
            check_text(text, self._limits)
            media = await self._ingest([Path(path) for path in box.get("files") or []], conversation)
        except OmniError as error:
            _warn(error)
            return
        if text or media:
            added = Turn("user", text, media)
            async for update in self._answer(request, conversation, lambda turns: turns.append(added), wishes, EMPTIED):
                yield update

    async def spoken(
        self, request: gr.Request, event: gr.EventData, box: dict[str, Any], key: str, *wishes: Any
    ) -> Updates:
        """A recorded utterance, which the page has posted before it triggered this, with the files in the box. Files
        that cannot be taken stay there: what was said is worth more than they are. Of an utterance that
        cannot be taken the page is told, which has it still."""
        conversation = self._tabs.opened(request, key)
        try:
            self._dialogues.check(Part("audio"))
            part = self._utterances.take(conversation.visitor, str(event.id), conversation.media_folder)
        except OmniError as error:
            yield {"voice": {"untaken": event.id, "why": str(error)}}
            return
        emptied: Update = {}
        media: list[Part] = []
        try:
            if files := box.get("files"):
                media = await self._ingest([Path(path) for path in files], conversation)
                emptied = EMPTIED
        except OmniError as error:
            _warn(error)
        added = Turn("user", media=[*media, part])
        async for update in self._answer(request, conversation, lambda turns: turns.append(added), wishes, emptied):
            yield update

    async def retry(self, request: gr.Request, key: str, *wishes: Any) -> Updates:
        conversation = self._tabs.opened(request, key)
        if any(turn.role == "user" for turn in conversation.turns):
            async for update in self._answer(request, conversation, without_last_answer, wishes):
                yield update

    async def edit(self, request: gr.Request, event: gr.EditData, key: str, *wishes: Any) -> Updates:
        """Say an earlier message differently: what came after it goes, its files stay."""
        conversation = self._tabs.opened(request, key)
        index = _index(event)
        text = clean(render.typed(str(event.value))).strip()
        try:
            media = self._editable(conversation, index).media
            check_text(text, self._limits)
            if not text and not media:
                raise BadRequest("The message would be empty. Write something, or delete the conversation.")
        except BadRequest as error:
            _warn(error)
            async for update in self._told(request, conversation, {"chat": self._rendered(conversation)}):
                yield update
            return

        def replace(turns: list[Turn]) -> None:
            turns[index:] = [Turn("user", text, media)]

        async for update in self._answer(request, conversation, replace, wishes):
            yield update

    async def undo(self, request: gr.Request, box: dict[str, Any], key: str) -> Updates:
        """Take the last message back into the box, with its files, before what is there already."""
        conversation = self._tabs.opened(request, key)
        async with self._dialogues.alone(conversation):
            shown = await self._taken_back(request, conversation, box)
        async for update in self._told(request, conversation, shown):
            yield update

    async def _taken_back(self, request: gr.Request, conversation: Conversation, box: dict[str, Any]) -> Update:
        self._dialogues.change(conversation, without_last_answer)
        if not conversation.turns:
            return {"chat": []}
        turn = conversation.turns[-1]
        try:
            files = await anyio.to_thread.run_sync(_lent, turn.files())
        except OSError as error:
            _warn(unkept("The message", error))
            return {"chat": self._rendered(conversation)}
        _tell(self._dialogues.change(conversation, without_last_question))
        text = "\n".join(filter(None, (turn.text, box.get("text"))))
        filled = {"text": text, "files": files + (box.get("files") or [])}
        shown = {"chat": self._rendered(conversation), "box": filled, "voice": SILENCE}
        return shown | self._named(request, conversation)

    async def halt(self, request: gr.Request, key: str) -> None:
        await self._dialogues.stop(self._tabs.opened(request, key))

    async def clear(self, request: gr.Request, key: str) -> Update:
        conversation = self._tabs.opened(request, key)
        async with self._dialogues.alone(conversation):
            _tell(self._dialogues.change(conversation, list.clear))
        return {"chat": [], "voice": SILENCE} | self._named(request, conversation)

    async def like(self, request: gr.Request, event: gr.LikeData, key: str) -> None:
        conversation = self._tabs.opened(request, key)
        index = _index(event)
        if 0 <= index < len(conversation.turns):
            conversation.turns[index].liked = None if event.liked == "" else bool(event.liked)
            self._store.save(conversation)

    async def delete(self, request: gr.Request, key: str) -> Update:
        conversation = self._tabs.opened(request, key)
        async with self._dialogues.alone(conversation):
            self._store.delete(conversation)
        return self.fresh(request)

    def fresh(self, request: gr.Request, key: str = "") -> Update:
        """An empty conversation; the one that was open goes on being answered. Of the key that the page has given it,
        a question may have come before this did."""
        conversation = self._tabs.opened(request, key)
        if conversation.turns:
            return {}
        self._tabs.knows(request, self._dialogues.abilities)
        return {"key": conversation.id, "chat": [], "voice": SILENCE} | self._named(request, conversation)

    async def open(self, request: gr.Request, key: str) -> Updates:
        """Show a conversation, and go on showing the answer that is being made in it. Where a question has come before
        this did, its answer is heard."""
        conversation = self._store.get(visitor_of(request), key)
        there = conversation is not None and self._tabs.shows(request, conversation)
        async for update in self._opened(request, key, {} if there else SILENCE):
            yield update

    async def back(self, request: gr.Request, event: gr.EventData, key: str) -> Updates:
        """Show it anew to a page that doubts its connection, and leave it what it plays. The bar hears of no value that
        is as the last one was, so this one carries the number of the doubt."""
        async for update in self._opened(request, key, {"doubt": event.id}):
            yield update

    async def _opened(self, request: gr.Request, key: str, voice: Update) -> Updates:
        visitor = visitor_of(request)
        conversation = self._store.get(visitor, key)
        if conversation is None:
            yield self.fresh(request) | {"voice": SILENCE | voice}
            return
        self._tabs.show(request, conversation)
        self._tabs.knows(request, self._dialogues.abilities)
        live = self._replies.current(visitor, conversation.id)
        async for update in self._told(request, conversation, self._whole(request, conversation, voice), voice):
            yield update
        if live is not None:
            async for update in self._follow(conversation, live, request, named=False):
                yield update

    def rename(self, request: gr.Request, key: str, title: str) -> Update:
        """Who leaves the field by opening another conversation names the one before, and goes on to the other."""
        conversation = self._store.get(visitor_of(request), key)
        if conversation is None or title.strip() == conversation.title:
            return {}
        _tell(self._store.rename(conversation, title))
        return self.listed(request)

    def search(self, request: gr.Request, query: str) -> Update:
        self._tabs.search(request, query)
        return self.listed(request)

    def listed(self, request: gr.Request) -> Update:
        return {"history": self._tabs.listed(request)}

    async def left(self, request: gr.Request) -> None:
        """A tab was closed: if nobody of that visitor comes back soon, its answers are not worth the engine's time."""
        visitor = self._tabs.closed(request)
        if visitor is not None:
            asyncio.get_running_loop().call_later(LEFT_ALONE_SECONDS, self._abandon, visitor)

    def _abandon(self, visitor: str) -> None:
        if not self._tabs.has(visitor):
            for reply in self._replies.of(visitor):
                reply.abandon()

    async def _answer(
        self,
        request: gr.Request,
        conversation: Conversation,
        change: Change,
        wishes: Sequence[Any],
        also: Update | None = None,
    ) -> Updates:
        """The reply runs before anything is yielded: each yield costs the visitor some milliseconds."""
        wish = Wishes(*wishes)
        prompt = clean(wish.system_prompt or "")
        person = person_of(request.request)
        reply, problem = await self._dialogues.answer(
            conversation, change, wish.options(), prompt, person.name if person else ""
        )
        _tell(problem)
        speech = wish.speech and self._dialogues.speaks
        begun: Update = {
            "key": conversation.id,
            "chat": self._rendered(conversation, reply),
            "voice": {"run": reply.run if speech else "", "busy": True, "speech": speech},
        }
        # While its files were read, the visitor may have gone to another conversation.
        if self._tabs.shows(request, conversation):
            async for update in self._told(request, conversation, begun | (also or {}), SILENCE):
                yield update
        else:
            yield self.listed(request) | (also or {})
        async for update in self._follow(conversation, reply, request):
            yield update
        shown = self._tabs.shows(request, conversation)
        if shown and (news := self._tabs.news(request, self._dialogues.abilities)):
            gr.Warning(f"What answers here has changed: {news}", duration=20)
            yield {"status": None}

    async def _follow(
        self, conversation: Conversation, reply: LiveReply, request: gr.Request, *, named: bool = True
    ) -> Updates:
        """Samples the reply's text, never faster than the page can show it; the reply itself does not wait for us.

        `named`: the page that follows has asked for this answer and hears it, so it is told its name."""
        pause, seen = FASTEST_UPDATE_SECONDS, ("", "")
        while not reply.done:
            await reply.wait(1.0)
            if not self._tabs.shows(request, conversation):
                return
            if not reply.done and (now := (reply.text, reply.heard)) != seen:
                seen, began = now, time.perf_counter()
                async for update in self._told(request, conversation, {"chat": self._rendered(conversation, reply)}):
                    yield update
                pause = max(FASTEST_UPDATE_SECONDS, 2 * (time.perf_counter() - began))
                await asyncio.sleep(pause)
        if self._tabs.shows(request, conversation):
            again = self._replies.current(conversation.visitor, conversation.id)
            ended = {"chat": self._rendered(conversation), "voice": gr.skip() if again else _ended(reply, named)}
            async for update in self._told(request, conversation, ended | self._named(request, conversation)):
                yield update

    async def _told(
        self, request: gr.Request, conversation: Conversation, update: Update, voice: Update | None = None
    ) -> Updates:
        """Gradio files the media of an update before it tells the page of it, so that what was told meanwhile is newer.
        Who is in another conversation by then is shown that one again, and their bar told this of its voice."""
        yield update
        if self._tabs.shows(request, conversation):
            if "history" in update and (now := self.listed(request)) != {"history": update["history"]}:
                yield now
            return
        seen = None
        while (there := self._tabs.shown(request)) is not None:
            state = (there.id, self._replies.current(there.visitor, there.id))
            if state == seen:
                return
            seen = state
            yield self._whole(request, there, voice or {})

    def _whole(self, request: gr.Request, conversation: Conversation, voice: Update) -> Update:
        live = self._replies.current(conversation.visitor, conversation.id)
        latest = self._replies.latest(conversation.visitor, conversation.id)
        return {
            "key": conversation.id,
            "chat": self._rendered(conversation, live),
            "voice": voice | {"busy": live is not None, "latest": latest},
        } | self._named(request, conversation)

    async def _ingest(self, files: Sequence[Path], conversation: Conversation) -> list[Part]:
        check_count(len(files), self._limits)
        kept: list[Part] = []
        try:
            for path in files:
                part = await ingest(path, name=path.name, into=conversation.media_folder, limits=self._limits)
                kept.append(part)
                self._dialogues.check(part)
        except OmniError:
            for part in kept:
                cast(Path, part.path).unlink(missing_ok=True)
            raise
        return kept

    def _editable(self, conversation: Conversation, index: int) -> Turn:
        if not 0 <= index < len(conversation.turns) or conversation.turns[index].role != "user":
            raise BadRequest("This message is no longer in the conversation. Please reload the page.")
        return conversation.turns[index]

    def _named(self, request: gr.Request, conversation: Conversation) -> Update:
        """The list and the title of the one that is open: without a message it has no place in either."""
        title = gr.update(value=conversation.title, visible=bool(conversation.turns))
        return {"history": self._tabs.listed(request), "title": title}

    def _rendered(self, conversation: Conversation, live: LiveReply | None = None) -> Any:
        messages = render.conversation(conversation.turns, live)
        return gr.update(value=messages, feedback_value=render.likes(conversation.turns))


def _ended(reply: LiveReply, named: bool) -> Update:
    name = {"run": "" if reply.stopped else reply.run} if named or reply.stopped else {}
    return name | {"busy": False, "speech": reply.has_speech}


def _index(event: gr.EditData | gr.LikeData) -> int:
    return event.index if isinstance(event.index, int) else int(event.index[0])


def _lent(files: Sequence[Path]) -> list[str]:
    """Copies in Gradio's own folder, which go from there by themselves. Raises OSError."""
    return [save_file_to_cache(path, get_upload_folder()) for path in files if path.exists()]


def _tell(problem: str) -> None:
    """What went wrong with keeping a conversation, if anything did."""
    if problem:
        gr.Warning(problem)


def _warn(error: Exception) -> None:
    gr.Warning(html.escape(str(error)), duration=20)
