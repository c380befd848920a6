"""Answer, span, metrics and document agree on how a request ended, on every server."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tests.outcomes.servers import servers
from tests.outcomes.table import CASES, LEGACY, eras, problems, run

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The libraries write down what they are made to fail at."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "era"), [(name, era) for name in servers() for era in eras(name)])
async def test_span_metrics_and_document_agree_with_the_clients_answer(name: str, era: str) -> None:
    seen = await run(name, era)

    assert len(seen) == len(CASES)
    assert [problem for each in seen for problem in problems(name, era, each)] == []


@pytest.mark.parametrize("name", ["sdk2-high", "sdk2-low-outside", "fastmcp4-answering", "handwritten-gzip"])
async def test_a_request_that_is_not_sampled_has_no_span(name: str) -> None:
    seen = await run(name, LEGACY, ALWAYS_OFF)

    assert [(each.case.name, len(each.spans), len(each.points)) for each in seen] == [(c.name, 0, 1) for c in CASES]
    assert [each.document["failure"] for each in seen if each.document is not None] == [
        each.case.expected(name) for each in seen if each.document is not None
    ]
