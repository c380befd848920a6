"""Queries of panels: PromQL, LogQL, and searches and traces of Jaeger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders.loki import Dataquery as LokiQuery
from grafana_foundation_sdk.builders.prometheus import Dataquery as PrometheusQuery
from grafana_foundation_sdk.cog import builder, variants
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
JAEGER: Final = DataSourceRef(type_val="jaeger", uid="${traces}")
LOKI: Final = DataSourceRef(type_val="loki", uid="${logs}")


def over_time(expr: str, legend: str, *, ref: str = "A", exemplars: bool = False) -> PrometheusQuery:
    """Ask for a line per series."""
    query = _prometheus(expr, ref).range().legend_format(legend)
    return query.exemplar(True) if exemplars else query


def buckets(expr: str, *, exemplars: bool = False) -> PrometheusQuery:
    """Ask for the buckets of a heatmap."""
    query = over_time(expr, "{{le}}", exemplars=exemplars)
    return query.format(PromQueryFormat.HEATMAP)


def now(expr: str, legend: str = "", *, ref: str = "A") -> PrometheusQuery:
    """Ask for one value per series, at the end of the selected time range."""
    return _prometheus(expr, ref).instant().legend_format(legend)


def column(ref: str, expr: str) -> PrometheusQuery:
    """Ask for a column of a table; labels become columns, too."""
    return now(expr, ref=ref).format(PromQueryFormat.TABLE)


def _prometheus(expr: str, ref: str) -> PrometheusQuery:
    return PrometheusQuery().datasource(PROMETHEUS).expr(expr).ref_id(ref)


@dataclass
class _Jaeger(variants.Dataquery):
    """A query as Grafana's Jaeger data source stores it; the SDK has no model of it."""

    fields: dict[str, object]

    def to_json(self) -> dict[str, object]:
        return {"refId": "A", "datasource": {"type": "jaeger", "uid": JAEGER.uid}} | self.fields


class _JaegerQuery(builder.Builder[variants.Dataquery]):
    def __init__(self, **fields: object) -> None:
        self._query = _Jaeger(fields)

    def build(self) -> variants.Dataquery:
        return self._query


def search(*, operation: str = "", tags: str = "", limit: int = 50) -> _JaegerQuery:
    """Ask for the traces with a span of this operation and these tags (logfmt)."""
    fields: dict[str, object] = {"queryType": "search", "service": "$service", "limit": limit}
    if operation:
        fields["operation"] = operation
    if tags:
        fields["tags"] = tags
    return _JaegerQuery(**fields)


def trace(trace_id: str) -> _JaegerQuery:
    """Ask for one trace."""
    return _JaegerQuery(query=trace_id)


def logs(expr: str) -> LokiQuery:
    """Ask for the matching lines, newest first."""
    return LokiQuery().datasource(LOKI).expr(expr).query_type("range").max_lines(500).ref_id("A")


def counted(expr: str, legend: str = "") -> LokiQuery:
    """Ask for one value per series of a LogQL metric query, over the selected time range."""
    return LokiQuery().datasource(LOKI).expr(expr).query_type("instant").legend_format(legend).ref_id("A")
