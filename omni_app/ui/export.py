"""A conversation as a ZIP archive to take away: JSON for programs, Markdown for people, and the media both refer to."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from omni_app.errors import unkept
from omni_app.ui.store import Conversation, Store, Turn
from omni_app.ui.visitor import visitor_of

PIECE_BYTES = 2**18


def routes(store: Store) -> list[Route]:
    async def export(request: Request) -> Response:
        conversation = store.get(visitor_of(request), request.path_params["key"])
        if conversation is None or not conversation.turns:
            return Response("There is nothing to export in this conversation yet.", status_code=404)
        name = re.sub(r"[^A-Za-z0-9]+", "-", conversation.title).strip("-") or "conversation"
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"', "Cache-Control": "no-store"}
        try:
            content = await run_in_threadpool(archive, conversation)
        except OSError as error:
            refused = unkept("The archive", error)
            return Response(str(refused), status_code=refused.status)
        return StreamingResponse(_pieces(content), media_type="application/zip", headers=headers)

    return [Route("/gradio_api/export/{key}", export, methods=["GET"])]


def archive(conversation: Conversation) -> IO[bytes]:
    """The ZIP file: conversation.json, conversation.md and media/. It lies on the disk, without a name: clips may be
    larger than the memory. Raises OSError."""
    content = TemporaryFile()  # noqa: SIM115
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("conversation.json", json.dumps(as_json(conversation), indent=1, ensure_ascii=False))
        bundle.writestr("conversation.md", as_markdown(conversation))
        for path in {path for turn in conversation.turns for path in turn.files() if path.exists()}:
            bundle.write(path, f"media/{path.name}")
    content.seek(0)
    return content


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(PIECE_BYTES):
            yield piece


def as_json(conversation: Conversation) -> dict[str, object]:
    messages = [
        {
            "role": turn.role,
            "text": turn.text,
            "heard": turn.heard,
            "media": [
                {"kind": part.kind, "name": part.name, "file": f"media/{_name(part.path)}"} for part in turn.media
            ],
            "speech": f"media/{turn.speech.name}" if turn.speech else None,
            "figures": turn.figures,
            "note": turn.note,
            "liked": turn.liked,
        }
        for turn in conversation.turns
    ]
    return {"title": conversation.title, "messages": messages}


def as_markdown(conversation: Conversation) -> str:
    return "\n\n".join([f"# {conversation.title}", *(_section(turn) for turn in conversation.turns)]) + "\n"


def _section(turn: Turn) -> str:
    lines = ["## You" if turn.role == "user" else "## Omni"]
    for part in turn.media:
        mark = "!" if part.kind == "image" else ""
        lines.append(f"{mark}[{part.name or part.kind}](media/{_name(part.path)})")
    if turn.text:
        lines.append(turn.text)
    if turn.speech:
        lines.append(f"[speech](media/{turn.speech.name})")
    lines += [f"*{text}*" for text in (turn.heard and f"heard: {turn.heard}", turn.note, turn.figures) if text]
    return "\n\n".join(lines)


def _name(path: Path | None) -> str:
    return path.name if path else ""
