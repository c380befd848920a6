"""What a request came to is told alike by the answer, the span, the metrics and the document, on every server."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.outcomes.servers import servers
from tests.outcomes.table import CASES, eras, problems, run

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The libraries write down what they are made to fail at."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "era"), [(name, era) for name in servers() for era in eras(name)])
async def test_span_metrics_and_document_say_what_the_client_got(name: str, era: str) -> None:
    seen = await run(name, era)

    assert len(seen) == len(CASES)
    assert [problem for each in seen for problem in problems(name, era, each)] == []
