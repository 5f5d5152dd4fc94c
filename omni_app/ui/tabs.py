"""The open tabs of the page: whose they are, which conversation each shows, and what each searches for."""

from __future__ import annotations

from typing import Any

import gradio as gr

from omni_app.ui.store import Conversation, Store
from omni_app.ui.visitor import name_of


class Tabs:
    """One visitor may have several; Gradio's session hash tells them apart."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[str, tuple[str, str]] = {}
        """Session hash -> visitor and conversation."""
        self._abilities: dict[str, str] = {}
        """Session hash -> what the tab knows of the engine."""
        self._queries: dict[str, str] = {}

    def opened(self, request: gr.Request, key: str) -> Conversation:
        """The visitor's conversation of this key, or a new one, which the tab shows from now on."""
        visitor = visitor_of(request)
        return self.show(request, self._store.get(visitor, key) or self._store.new(visitor, key))

    def show(self, request: gr.Request, conversation: Conversation) -> Conversation:
        self._views[_session(request)] = (conversation.visitor, conversation.id)
        return conversation

    def shows(self, request: gr.Request, conversation: Conversation) -> bool:
        return self._views.get(_session(request)) == (conversation.visitor, conversation.id)

    def shown(self, request: gr.Request) -> Conversation | None:
        """What the tab shows, if it is open still."""
        visitor, key = self._views.get(_session(request), ("", ""))
        return self._store.get(visitor, key)

    def search(self, request: gr.Request, query: str) -> None:
        self._queries[_session(request)] = query

    def knows(self, request: gr.Request, abilities: str) -> str:
        """The page of this tab has been told of these abilities, unless of others before; returns which."""
        return self._abilities.setdefault(_session(request), abilities) if abilities else ""

    def news(self, request: gr.Request, abilities: str) -> str:
        """`abilities` if the tab knew of others so far, else nothing; it knows them from now on."""
        if self.knows(request, abilities) == abilities:
            return ""
        self._abilities[_session(request)] = abilities
        return abilities

    def listed(self, request: gr.Request) -> Any:
        """The visitor's conversations that this tab's search finds, the one that it shows marked, as an update of the
        list."""
        found = self._store.all(visitor_of(request), self._queries.get(_session(request), ""))
        choices = [(conversation.title, conversation.id) for conversation in found]
        shown = next((one.id for one in found if self.shows(request, one)), None)
        return gr.update(choices=choices, value=shown)

    def closed(self, request: gr.Request) -> str | None:
        """Forget a tab; returns whose it was."""
        self._queries.pop(_session(request), None)
        self._abilities.pop(_session(request), None)
        view = self._views.pop(_session(request), None)
        return view[0] if view else None

    def has(self, visitor: str) -> bool:
        return any(owner == visitor for owner, _ in self._views.values())


def visitor_of(request: gr.Request) -> str:
    visitor = name_of(request.cookies)
    if not visitor:
        raise gr.Error("This page needs its cookie to keep your conversations apart. Please allow it and reload.")
    return visitor


def _session(request: gr.Request) -> str:
    return request.session_hash or ""
