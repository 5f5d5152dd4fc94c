"""The engine that runs on any machine, from small models for each sense."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from omni_app.settings import Settings

if TYPE_CHECKING:
    from omni_app.engines.base import Engine

# onnxruntime reports its use to its makers from the moment of its import on, unless told before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def create(settings: Settings) -> Engine:
    """Imports what it needs only now, so that other engines never load it."""
    from omni_app.engines.builtin.engine import BuiltinEngine

    return BuiltinEngine(settings)
