from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from omni_app.api import routes
from omni_app.media import Limits
from tests.api.callers import FakeEngine, settings


@pytest.fixture
def api(serve: Any, tmp_path: Path) -> Any:
    """Serves the API over an engine and gives a client of it; `fields` are settings."""

    async def start(engine: FakeEngine, key: str = "", **fields: Any) -> httpx.AsyncClient:
        chosen = settings(**{"data_dir": tmp_path / "data", **fields})
        address = await serve(Starlette(routes=routes(engine, chosen, Limits.of(chosen))))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=address, headers=headers, timeout=20, trust_env=False)

    return start
