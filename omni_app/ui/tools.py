"""What Gradio's own API and MCP clients may call: `/gradio_api/call/ask` and the MCP tool `ask`."""

# Without `from __future__ import annotations`: Gradio would read the tool's return type, a string then, as one value,
# and MCP clients would get a Python tuple in writing.

import base64
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import gradio as gr
from starlette.requests import Request

from omni_app.access import address_of
from omni_app.conversation import AudioDelta, Event, Message, ReplyOptions, TextDelta, clean
from omni_app.errors import BadRequest, OmniError, unkept
from omni_app.media import Limits, check_text, ingest_data_url
from omni_app.media.audio import WavWriter
from omni_app.runner import Runner
from omni_app.turnstile import Turnstile

UNSPOKEN = "(not spoken)"
"""In place of speech: MCP hands every value on as a text of its own, and a language model may refuse an empty one."""

Ask = Callable[..., Awaitable[tuple[str, str]]]


class ToolError(gr.Error):
    """What went wrong, which MCP clients read as it is: Gradio's own would stand in quotation marks."""

    def __str__(self) -> str:
        return str(self.message)


def ask_tool(runner: Runner, limits: Limits, turnstile: Turnstile | None = None, proxies: int = 0) -> Ask:
    """The tool; callers are counted by the address that they come from, through so many proxies."""
    turnstile = turnstile or Turnstile()

    async def ask(
        message: str, request: gr.Request, attachment: str = "", speech: bool = False, voice: str = ""
    ) -> tuple[str, str]:
        """Ask Omni one question, with a picture, a sound or a clip if you like, and get its whole answer.

        Args:
            message: The question, in plain text.
            attachment: A file as a data URL (data:<type>;base64,...); empty for none.
            speech: Whether to speak the answer too.
            voice: Name of the voice; empty for the engine's own choice.

        Returns:
            The answer's text, and its speech as a data URL of a WAV file, or "(not spoken)".
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                _check_types(message, attachment, speech, voice)
                check_text(message, limits)
                media = [await ingest_data_url(attachment, into=Path(folder), limits=limits)] if attachment else []
                options = ReplyOptions(speech=bool(speech), voice=clean(voice or "") or None)
                reply = runner.reply([Message.of("user", clean(message), *media)], options)
                return await _whole(turnstile.through(_caller(request, proxies), reply), Path(folder))
            except OmniError as error:
                raise ToolError(str(error), print_exception=False) from error
            except OSError as error:
                raise ToolError(str(unkept("What was sent or said", error)), print_exception=False) from error

    return ask


def _check_types(message: object, attachment: object, speech: object, voice: object) -> None:
    """Gradio hands values on as they came. Raises BadRequest."""
    if not isinstance(speech, bool | None) or any(not isinstance(one, str | None) for one in (attachment, voice)):
        raise BadRequest("Send attachment and voice as texts, and speech as true or false.")
    if not isinstance(message, str):
        raise BadRequest("Send the message as a text.")


def _caller(request: gr.Request | Request, proxies: int) -> str:
    """MCP hands over the request as it came, Gradio's own API in a wrapping."""
    asked = request.request if isinstance(request, gr.Request) else request
    return address_of(asked, proxies) if asked else ""


async def _whole(reply: AsyncGenerator[Event, None], folder: Path) -> tuple[str, str]:
    text, pieces = "", list[AudioDelta]()
    async with contextlib.aclosing(reply) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, AudioDelta):
                pieces.append(event)
    return text, _data_url(pieces, folder / "answer.wav")


def _data_url(pieces: list[AudioDelta], path: Path) -> str:
    if not pieces:
        return UNSPOKEN
    with WavWriter(path, pieces[0].sample_rate) as wav:
        for piece in pieces:
            wav.write(piece.pcm)
    return "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()
