"""Checkpoints of every format, laid out once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from omni_app.server import checkpoint
from omni_app.server.checkpoint import Checkpoint
from tests.server import model_folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint of one kind; read it, never change it."""
    return cache(lambda kind: model_folder.make(tmp_path_factory.mktemp("models") / kind, kind))


@pytest.fixture(scope="session")
def checkpoint_of(folder_of: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    return cache(lambda kind: checkpoint.read(folder_of(kind)))
