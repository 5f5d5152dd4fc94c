"""A finished model to a hub, from its card on the Quantize page: what would be sent, and the upload itself."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from omni_app.errors import BadRequest
from omni_app.hub_login import Person, person_of
from omni_app.jobs import Job
from omni_app.pushing import Push, Pushes, Upload
from omni_app.ui.confirm import confirmed
from omni_app.ui.quantize_plots import size

SHOWN = ("share", "repo", "token", "sent", "stop")
CONFIRM_UPLOAD = confirmed(
    "`Upload this model to ${repo}, ${hidden ? 'private, for you alone' : 'PUBLIC, for everybody to see'}?`",
    "password", "chosen", "repo", "hidden", "token",
)  # fmt: skip
NO_LOGIN = "Uploading takes your own login at the hub: {sign_in}paste a token of yours that may create repositories."

Find = Callable[[str], Job]
Try = Callable[[str, gr.Request, Callable[[], None]], Awaitable[str]]


class PushPanel:
    """find: the job that a tab shows. attempt: works for an operator, or gives the sentence that says why not."""

    def __init__(self, find: Find, attempt: Try, sign_in: bool) -> None:
        self._find = find
        self._try = attempt
        self._sign_in = sign_in
        self._pushes = Pushes()

    @property
    def busy(self) -> bool:
        return self._pushes.busy

    def build(self, add: dict[str, Any]) -> None:
        with gr.Accordion("Share it on the Hugging Face hub", open=False, visible=False, elem_id="share") as add[
            "share"
        ]:
            add["repo"] = gr.Textbox("", label="Repository", placeholder="owner/name", max_lines=1)
            add["hidden"] = gr.Checkbox(True, label="Private: nobody else sees it")
            add["token"] = gr.Textbox("", label=_token_label(None), type="password", max_lines=1)
            with gr.Row():
                add["list_files"] = gr.Button("What would be uploaded")
                add["upload"] = gr.Button("Upload", variant="primary")
                add["stop"] = gr.Button("Stop the upload", variant="stop", visible=False)
            add["push_answer"] = gr.HTML(elem_id="push-answer", padding=False)
            add["sent"] = gr.HTML(elem_id="sent", padding=False)

    def events(self, w: dict[str, Any], both: list[Any], look: dict[str, Any]) -> None:
        """both: the operator's password and the chosen job. look: what makes the panel look anew."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        named = [*both, w["repo"], w["hidden"]]
        w["list_files"].click(self._list, named, w["push_answer"], **quiet).then(**look)
        w["stop"].click(self._stop, both, w["push_answer"], **quiet).then(**look)
        w["upload"].click(
            self._upload, [*named, w["token"]], [w["push_answer"], w["token"]], js=CONFIRM_UPLOAD, **quiet
        ).then(**look)

    def shown(self, job: Job, done: bool, person: Person | None) -> dict[str, dict[str, Any]]:
        """What the widgets of SHOWN should be."""
        push = self._pushes.of(job)
        name = re.sub(r"[^\w.-]+", "-", Path(job.request.output).name)
        return {
            "share": {"visible": done},
            "repo": {"value": f"{person.name}/{name}" if person else "", "placeholder": f"owner/{name}"},
            "token": {"label": _token_label(person)},
            "sent": {"value": push_html(push) if push else ""},
            "stop": {"visible": bool(push and push.alive)},
        }

    async def _list(self, password: str, chosen: str, repo: str, hidden: bool, request: gr.Request) -> str:
        return await self._try(password, request, lambda: self._pushes.begin(self._find(chosen), repo, hidden))

    async def _upload(
        self, password: str, chosen: str, repo: str, hidden: bool, token: str, request: gr.Request
    ) -> tuple[str, str]:
        """The answer, and an empty field: a token is used once."""
        person = person_of(request.request)

        def begin() -> None:
            own = token.strip() or (person.token if person else "")
            if not own:
                raise BadRequest(NO_LOGIN.format(sign_in="sign in at the top of the page, or " * self._sign_in))
            self._pushes.begin(self._find(chosen), repo, hidden, own)

        return await self._try(password, request, begin), ""

    async def _stop(self, password: str, chosen: str, request: gr.Request) -> str:
        return await self._try(password, request, lambda: self._pushes.stop(self._find(chosen)))


def push_html(push: Push) -> str:
    """How far it is, or what came of it."""
    if push.alive:
        return _progress(push)
    if push.url:
        link = f'<a href="{html.escape(push.url)}" target="_blank" rel="noopener">{html.escape(push.url)}</a>'
        return f'<p role="status" class="verdict yes">Uploaded: {link}</p>'
    return _listed(push.upload) if push.upload else f'<p role="alert">{html.escape(push.error)}</p>'


def _progress(push: Push) -> str:
    step = push.step
    if step is None:
        return '<p role="status">It begins …</p>'
    if step.stage == "push":
        told = f"Uploading to {push.repo}: {size(step.done)} of {size(step.total)}, {step.layer}"
    else:
        told = f"Reading the files: {step.done} of {step.total}"
    stays = "<p>It goes on when this page is closed, and ends with the app.</p>" if push.sends else ""
    share = 100 * step.done / max(step.total, 1)
    return (
        f'<div class="quantize"><p role="status">{html.escape(told)}</p><div class="progress" role="progressbar" '
        f'aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100" aria-label="Progress of the upload">'
        f'<i style="width:{share:.1f}%"></i></div>{stays}</div>'
    )


def _listed(upload: Upload) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html.escape(file.name)}</th><td>{file.bytes:,}</td><td><code title="{file.sha256}">'
        f"{file.sha256[:12]}</code></td></tr>"
        for file in upload.files
    )
    kind = "private" if upload.private else "<b>public</b>, for everybody to see"
    told = f"{len(upload.files)} files, {size(upload.bytes)}, would go to {html.escape(upload.url)}, {kind}."
    return (
        f'<div class="quantize"><p role="status">{told} Nothing has been sent.</p><div class="scroll">'
        '<table class="facts"><thead><tr><th scope="col">File</th><th scope="col">Bytes</th>'
        f'<th scope="col">SHA-256</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _token_label(person: Person | None) -> str:
    used = "used once and never kept"
    return f"Another token than that of {person.name}, {used} (optional)" if person else f"A token of your own, {used}"
