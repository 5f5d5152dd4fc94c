"""Conversations, one folder each, grouped by visitor. The disk is the truth; open ones are held in memory too.

<data_dir>/visitors/<visitor>/<conversation>/conversation.json
                                             media/<unguessable>.jpg|png|wav|mp4...
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from omni_app.conversation import Message, Part, clean

log = logging.getLogger(__name__)

UNTITLED = "New conversation"
MOST_HELD = 1024
"""Conversations in memory; the ones opened longest ago are read from the disk again."""
VISITORS = "visitors"
"""The folder below `data_dir` that holds everything visitors say and get."""
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class Turn:
    """One message as it is kept: what was said, what it carried, and what we know about how it went."""

    role: str
    text: str = ""
    media: list[Part] = field(default_factory=list)
    heard: str = ""
    speech: Path | None = None
    figures: str = ""
    note: str = ""
    liked: bool | None = None

    def files(self) -> list[Path]:
        """Everything on the disk that belongs to this turn."""
        return [part.path for part in self.media if part.path] + ([self.speech] if self.speech else [])

    def message(self) -> Message:
        """What an engine is told of this turn: text and media. It listens for itself; the transcript is for people."""
        return Message.of("assistant" if self.role == "assistant" else "user", self.text, *self.media)


@dataclass(slots=True, weakref_slot=True)
class Conversation:
    id: str
    visitor: str
    folder: Path
    title: str = UNTITLED
    updated: float = field(default_factory=time.time)
    turns: list[Turn] = field(default_factory=list)
    named: bool = False
    """Whether the visitor chose the title; otherwise it follows the first message."""

    @property
    def media_folder(self) -> Path:
        """Made by whoever writes the first file into it."""
        return self.folder / "media"

    def messages(self, system_prompt: str = "") -> list[Message]:
        spoken = [turn.message() for turn in self.turns if turn.text or turn.media]
        return [Message.of("system", system_prompt), *spoken] if system_prompt.strip() else spoken

    def matches(self, query: str) -> bool:
        words = query.lower()
        return words in self.title.lower() or any(words in (turn.text + turn.heard).lower() for turn in self.turns)


class Store:
    """All conversations of all visitors. A visitor's name is opaque here and safe as a folder name (`visitor.py`)."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / VISITORS
        self._held: OrderedDict[tuple[str, str], Conversation] = OrderedDict()
        self._open = WeakValueDictionary[tuple[str, str], Conversation]()
        """Those and every one that somebody works on: of none there may be two, one of which misses an answer."""

    def new(self, visitor: str, key: object = "") -> Conversation:
        """A conversation that reaches the disk with its first turn, under this key if it is one and nothing lies
        there."""
        if not isinstance(key, str) or not _KEY.fullmatch(key) or (self._root / visitor / key).exists():
            key = secrets.token_hex(16)
        return self._hold(Conversation(id=key, visitor=visitor, folder=self._root / visitor / key))

    def get(self, visitor: str, key: object) -> Conversation | None:
        """The visitor's own conversation of that id, or None: another visitor's is as absent as one that never was."""
        if not visitor or not isinstance(key, str) or not key.isalnum():
            return None
        if (found := self._open.get((visitor, key))) is not None:
            return found
        conversation = _read(self._root / visitor / key, visitor)
        return self._hold(conversation) if conversation is not None else None

    def _hold(self, conversation: Conversation) -> Conversation:
        key = (conversation.visitor, conversation.id)
        self._open[key] = self._held[key] = conversation
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        return conversation

    def all(self, visitor: str, query: str = "") -> list[Conversation]:
        """The visitor's conversations that hold at least one turn and match the query, the newest first."""
        folder = self._root / visitor
        keys = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        keys |= {key for owner, key in self._open if owner == visitor}
        found = (self.get(visitor, key) for key in keys)
        held = [c for c in found if c is not None and c.turns and c.matches(query)]
        return sorted(held, key=lambda conversation: -conversation.updated)

    def save(self, conversation: Conversation) -> str:
        """Write the conversation; on a full or broken disk keep it in memory and return a sentence that says so."""
        conversation.updated = time.time()
        if not conversation.named:
            conversation.title = _title(conversation.turns)
        try:
            conversation.folder.mkdir(parents=True, exist_ok=True)
            _write(conversation.folder / "conversation.json", _to_json(conversation))
        except OSError as error:
            log.error("conversation %s was not saved: %s", conversation.id, error)
            return f"This conversation could not be saved ({error.strerror}); it is kept until the app stops."
        return ""

    def rename(self, conversation: Conversation, title: str) -> str:
        """What `save` says of it; an empty title leaves the choice to us again."""
        words = " ".join(clean(title).split())[:60]
        conversation.title, conversation.named = words, bool(words)
        return self.save(conversation)

    def delete(self, conversation: Conversation) -> None:
        for known in (self._open, self._held):
            known.pop((conversation.visitor, conversation.id), None)
        if conversation.folder.exists():
            shutil.rmtree(conversation.folder)


def _title(turns: Iterable[Turn]) -> str:
    for turn in turns:
        if turn.role == "user":
            words = turn.text or turn.heard or ", ".join(part.name or part.kind for part in turn.media)
            if words:
                return " ".join(words.split())[:60]
    return UNTITLED


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    os.replace(temporary, path)  # noqa: PTH105 (atomic over an existing file on every system)


def _to_json(conversation: Conversation) -> dict[str, Any]:
    return {
        "title": conversation.title,
        "named": conversation.named,
        "updated": conversation.updated,
        "turns": [_turn_to_json(turn) for turn in conversation.turns],
    }


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    content = asdict(turn)
    content["speech"] = turn.speech.name if turn.speech else None
    for part in content["media"]:
        part["path"] = part["path"].name if part["path"] else None
    return content


def _turn_from_json(content: dict[str, Any], media: Path) -> Turn:
    parts = [Part(**{**part, "path": media / part["path"]}) for part in content["media"]]
    speech = media / content["speech"] if content["speech"] else None
    return Turn(**{**content, "media": parts, "speech": speech})


def _read(folder: Path, visitor: str) -> Conversation | None:
    try:
        content = json.loads((folder / "conversation.json").read_text())
        turns = [_turn_from_json(turn, folder / "media") for turn in content["turns"]]
        title, updated, named = content["title"], content["updated"], content["named"]
        return Conversation(folder.name, visitor, folder, title, updated, turns, named)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.error("conversation %s cannot be read and is left out: %s", folder.name, error)
        return None
