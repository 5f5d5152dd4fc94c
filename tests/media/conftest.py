from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from omni_app.conversation import Part
from omni_app.media import Limits, ingest
from omni_app.settings import Settings

Take = Callable[..., Awaitable[Part]]


@pytest.fixture
def limits() -> Limits:
    return Limits.of(Settings())


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def take(into: Path, limits: Limits) -> Take:
    """Ingest into the test's own folder."""

    async def _take(source: Path | bytes, name: str = "file", limits: Limits = limits) -> Part:
        return await ingest(source, name=name, into=into, limits=limits)

    return _take
