"""The page of all metrics, made from the catalogue: `python -m gateway.telemetry.reference > docs/metrics.md`."""

from __future__ import annotations

import sys

from gateway.telemetry.families import FAMILIES, Family

_HEAD = """# Metrics

Made from the catalogue by `python -m gateway.telemetry.reference`; do not edit.

Prometheus text format 0.0.4, on `telemetry.metrics.listen` (default 127.0.0.1:9464, path `/metrics`), a port of its own
without a password: keep it on a private address. With `telemetry.metrics.token` set, `/metrics` is served on the API's port
too, to whoever shows `Authorization: Bearer TOKEN`; without a token there is no such page there. One scrape tells the sum
over all workers of a gateway; a worker that died keeps its counters in the sum.

**Labels come from the configuration or from fixed lists**: `model`, `deployment` and `engine` are configured names (`other`
stands for what is none), `outcome`, `scope` and `unit` are of fixed sets. No key, team, user or word of a client's is ever a
label, so the number of series is bounded by the configuration: figures by key and team come from the ledger (the dashboard
*Keys and quotas* asks it by SQL).

`scope` of limits: `key`, `user`, `team`, `organisation`, `model`, `gateway`, and with `_model` those that hold for one model.
`unit`: `requests`, `tokens`, `input_tokens`, `output_tokens`, `nusd` (money), `slots`.

Several gateways on one Redis each tell `switchyard_usage_stream_rows`, `switchyard_usage_stream_lag_seconds` and
`switchyard_ledger_rows_written_total` of the whole: take the largest, not the sum. `rows_written` needs Redis 7.0 or newer.
Figures of engines and of the usage stream are asked for every 5 s. GPU memory is not among them: use the GPU's own exporter.

Dashboards and alerts over these are in [dashboards.md](dashboards.md) and [runbooks.md](runbooks.md).

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The whole Markdown page."""
    return _HEAD + "".join(map(_row, FAMILIES.values()))


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    bounds = f" Buckets: {', '.join(f'{bound:g}' for bound in family.bounds)}." if family.bounds else ""
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help}{bounds} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
