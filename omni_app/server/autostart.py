"""Serving a model with the start of the app, where nobody is there to press a button: a Space, a kiosk."""

from __future__ import annotations

from pathlib import Path

from omni_app import hardware
from omni_app.errors import OmniError
from omni_app.server.control import ServerControl
from omni_app.server.prepare import Order
from omni_app.settings import Settings


def begin(settings: Settings) -> str:
    """Start to serve `serve_model` in the background if a GPU can hold it; the app moves to it once it is ready.

    Returns one sentence for the page on what was decided, empty when there was nothing to decide. Reads the model's
    headers: seconds.
    """
    control = ServerControl(settings)
    if not settings.serve_model or settings.engine != "auto" or settings.endpoint or control.state().works:
        return ""
    machine = hardware.detect()
    if not machine.gpus:
        return f"OMNI_SERVE_MODEL needs a GPU, and there is none ({machine.gpus_reason})."
    order = Order(Path(settings.serve_model))
    try:
        control.make_room()
        control.prepare(order)
        control.start(order)
    except OmniError as error:
        return f"OMNI_SERVE_MODEL cannot be served here: {error}"
    return f"{order.model.name} is being loaded on the {machine.gpus[0].name}; the System page tells how far it is."
