"""From settings to a running server: engine, page, API and routes on one port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from omni_app import api, engines, space
from omni_app.access import ToolGuard, malformed
from omni_app.certificate import ensure
from omni_app.engines.base import Engine
from omni_app.errors import BadRequest
from omni_app.hub_login import HubLogin, SignIn
from omni_app.media import Limits
from omni_app.runner import Runner
from omni_app.server import autostart
from omni_app.server.control import ServerControl, with_own_server
from omni_app.settings import LOOPBACK, Settings
from omni_app.turnstile import Turnstile
from omni_app.ui import export, speech
from omni_app.ui.chat import Chat
from omni_app.ui.dialogue import Dialogues
from omni_app.ui.gate import Gate
from omni_app.ui.headers import HeadersMiddleware
from omni_app.ui.live import Replies
from omni_app.ui.operators import Operators
from omni_app.ui.page import STATIC, Page
from omni_app.ui.quantize import QuantizePage
from omni_app.ui.store import VISITORS, Store
from omni_app.ui.system import SystemPage
from omni_app.ui.tools import ask_tool
from omni_app.ui.visitor import VisitorMiddleware

log = logging.getLogger(__name__)

MOST_EVENTS_AT_ONCE = 120
MOST_SESSIONS = 512
"""Open pages and calls of the tool that Gradio remembers; it holds 0.2 MB for each, and ten thousand if left alone."""
LOOK_EVERY_SECONDS = 2.0
GRACE_SECONDS = 1
"""For open connections when the app ends. The pages' never close by themselves."""
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
BUILTIN = "builtin"
UTTERANCES = "utterances"
"""The folder of the data folder that holds recordings until their turn."""


def launch(settings: Settings) -> None:
    """Choose the engine, start everything, and return when the server is stopped."""
    settings = space.adapted(settings)
    engine, because = choose(settings)
    runner = Runner(engine, because, settings.max_replies)
    try:
        demo, url = serve(settings, runner)
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadRequest(  # Gradio says not why
            f"The app cannot listen at {settings.host}, port {settings.port}. Another copy may be "
            "running there; end it, or choose another port with --port (OMNI_PORT)."
        ) from error
    print(f"Omni is at {url} (engine {engine.status().name}: {because})", flush=True)
    stay(demo)


def stay(demo: gr.Blocks) -> None:
    """Run until Ctrl-C, SIGTERM, or until the terminal is closed, and keep what is being said; a second one ends the
    process at once."""
    told = threading.Event()
    for number in ENDING:
        signal.signal(number, lambda *_: told.set())
    told.wait()
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # has a trace for each stream that this cuts off
    demo.close(verbose=False)


def choose(settings: Settings) -> tuple[Engine, str]:
    """The engine for these settings, a server that was started from this data folder included, and why it is taken."""
    settings, own = with_own_server(settings)
    spec, because = engines.choose(settings)
    return spec.create(settings), own or because


async def serve_from_the_start(settings: Settings, runner: Runner) -> None:
    """Begin with the model that the settings name for it, and say on the page what has become of that."""
    if said := await anyio.to_thread.run_sync(autostart.begin, settings):
        log.info(said)
        runner.chosen_because = f"{runner.chosen_because} {said}"


async def rest_when_idle(settings: Settings, runner: Runner) -> None:
    """Give the builtin engine's memory back when nobody asks anything; a remote one holds none of ours, and one that
    still fetches its models is not to begin anew."""
    while settings.idle_minutes:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        status = runner.status()
        if runner.idle_seconds > 60 * settings.idle_minutes and status.ready and status.name == BUILTIN:
            runner.rest(*choose(settings))


async def follow_own_server(settings: Settings, runner: Runner) -> None:
    """Move to the server of this data folder when it becomes ready, and away from it when it is gone."""
    _, current = with_own_server(settings)
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        _, now = with_own_server(settings)
        if now != current:
            current = now
            runner.use(*choose(settings))


def serve(settings: Settings, runner: Runner) -> tuple[gr.Blocks, str]:
    """Start the server with this runner; returns the page and its address while it runs in threads of its own."""
    hub, replies = HubLogin.of(settings), Replies()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Gradio names its copies by content and deletes its own at the end, so two apps must not share the folder.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.data_dir / "gradio"))
    demo, routes = assemble(settings, runner, replies, hub)
    _warn_of_exposure(settings)
    certificate = _certificate(settings)
    _, url, _ = demo.queue(max_size=settings.max_waiting).launch(
        server_name=settings.host, server_port=settings.port or _free_port(), share=settings.share, **certificate,
        auth=_credentials(settings), max_threads=MOST_EVENTS_AT_ONCE, max_file_size=settings.max_upload_mb * 10**6,
        allowed_paths=[str(settings.data_dir / VISITORS)], run_history=False, ssr_mode=False, quiet=True,
        footer_links=["api", "settings"], theme=gr.themes.Soft(font=["system-ui", "sans-serif"]),
        css_paths=[STATIC / "style.css"], show_error=True, prevent_thread_lock=True, mcp_server=True,
        state_session_capacity=MOST_SESSIONS,
        app_kwargs={
            "routes": routes, "middleware": _middleware(settings, hub),
            "lifespan": _lifespan(settings, runner, replies), "exception_handlers": {RequestValidationError: malformed},
        },
    )  # fmt: skip
    demo.server.config.timeout_graceful_shutdown = GRACE_SECONDS
    return demo, url


def assemble(settings: Settings, runner: Runner, replies: Replies, hub: HubLogin | None) -> tuple[gr.Blocks, list[Any]]:
    """The page and every route of ours, wired to one engine."""
    limits, store = Limits.of(settings), Store(settings.data_dir)
    turnstile = Turnstile.of(settings)
    utterances = speech.Utterances(api.own_folder(settings.data_dir / UTTERANCES), limits)
    chat = Chat(Dialogues(runner, store, replies, turnstile), store, replies, utterances, limits)
    demo = Page(chat, runner, ask_tool(runner, limits, turnstile, settings.proxies), sign_in=hub is not None).build()
    operators, control = Operators(settings), ServerControl(settings)
    QuantizePage(settings, control, operators).mount(demo)
    SystemPage(runner, settings, control, operators).mount(demo)
    routes = [
        *api.routes(runner, settings, limits, turnstile),
        *speech.routes(replies, utterances, limits),
        *export.routes(store),
        *(hub.routes() if hub else ()),
    ]
    return demo, routes


def _lifespan(settings: Settings, runner: Runner, replies: Replies) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        runner.start()
        watching = [
            asyncio.create_task(follow_own_server(settings, runner), name="follow own server"),
            asyncio.create_task(serve_from_the_start(settings, runner), name="serve from the start"),
            asyncio.create_task(rest_when_idle(settings, runner), name="rest when idle"),
        ]
        yield
        for task in watching:
            task.cancel()
        await replies.stop()
        await runner.close()

    return lifespan


def _free_port() -> int:
    """Gradio looks for one too, but of two apps that look at once one fails, and MCP lets it try no second port."""
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


def _certificate(settings: Settings) -> dict[str, Any]:
    if not settings.https:
        return {}
    found = ensure(settings.data_dir / "https")
    print(found.explanation(settings.port), flush=True)
    if settings.host in LOOPBACK:
        print("So far it listens on this machine only: --host 0.0.0.0 opens it to other devices.", flush=True)
    # Gradio asks its own address once at the start, where nobody vouches for the certificate.
    return {"ssl_certfile": str(found.certificate), "ssl_keyfile": str(found.key), "ssl_verify": False}


def _middleware(settings: Settings, hub: HubLogin | None) -> list[Middleware]:
    return [
        Middleware(HeadersMiddleware),
        *([Middleware(SignIn, hub=hub)] if hub else ()),
        Middleware(VisitorMiddleware, private=settings.data_dir / VISITORS),
        Middleware(ToolGuard, settings=settings),
        Middleware(Gate, limits=Limits.of(settings), folder=Path(os.environ["GRADIO_TEMP_DIR"])),
    ]


def _credentials(settings: Settings) -> tuple[str, str] | None:
    user, colon, password = settings.auth.get_secret_value().partition(":")
    return (user, password) if colon else None


def _warn_of_exposure(settings: Settings) -> None:
    asks_who = settings.auth.get_secret_value() or settings.hub_login == "required"
    if (settings.share or settings.host not in LOOPBACK) and not asks_who:
        log.warning(
            "Everyone who can reach this address can use the chat, the API at /v1 and the tools at /gradio_api/mcp, "
            "and with them this machine's processor and disk. Set OMNI_AUTH=user:password to ask for a login."
        )
