"""Fixtures of the telemetry tests."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from understudy.telemetry.store.store import SpanStore


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch):
    for name in [known for known in os.environ if known.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest_asyncio.fixture
async def store(tmp_path) -> AsyncIterator[SpanStore]:
    """A store on disk."""
    opened = SpanStore(tmp_path / "traces.db")
    yield opened
    await opened.aclose()
