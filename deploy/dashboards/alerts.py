"""Recording rules and alerts as values. An alert is a figure, a comparison and a threshold, so that the figure can be tried
under load (it must be there although nothing is wrong) and the threshold in Prometheus' own unit tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.dashboards.fleet import FAILED

#: Where the runbooks are read; `generate --runbooks URL` writes another place.
RUNBOOKS = "docs/runbooks.md"


@dataclass(frozen=True)
class Recording:
    """A figure that dashboards and alerts ask for often. `record` is level:metric:operations."""

    record: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """`figure comparison threshold` for `hold`. `page` = somebody must act now, `ticket` = today."""

    name: str
    figure: str
    comparison: Literal[">", "<", "=="]
    threshold: float
    hold: str
    severity: Literal["page", "ticket"]
    summary: str
    about: str

    @property
    def expr(self) -> str:
        """The whole expression."""
        return f"{self.figure} {self.comparison} {self.threshold:g}"

    @property
    def anchor(self) -> str:
        """Its heading in docs/runbooks.md."""
        return self.name.lower()


def _ratio(part: str, whole: str) -> str:
    """A part that may not have happened yet, of a whole."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


RECORDINGS = (
    Recording("model_outcome:switchyard_requests:rate5m", "sum by (model, outcome) (rate(switchyard_requests_total[5m]))"),
    Recording(
        "model:switchyard_request_failures:ratio_rate5m",
        _ratio(
            f"sum by (model) (rate(switchyard_requests_total{{{FAILED}}}[5m]))",
            "sum by (model) (rate(switchyard_requests_total[5m]))",
        ),
    ),
    Recording(
        "deployment:switchyard_attempt_failures:ratio_rate5m",
        _ratio(
            'sum by (deployment) (rate(switchyard_attempts_total{outcome!="ok"}[5m]))',
            "sum by (deployment) (rate(switchyard_attempts_total[5m]))",
        ),
    ),
    Recording(
        "model:switchyard_time_to_first_token_seconds:p95_rate5m",
        "histogram_quantile(0.95, sum by (le, model) (rate(switchyard_time_to_first_token_seconds_bucket[5m])))",
    ),
    Recording(
        "switchyard_overhead_seconds:p99_rate5m",
        "histogram_quantile(0.99, sum by (le) (rate(switchyard_overhead_seconds_bucket[5m])))",
    ),
    Recording(
        "switchyard_limiter_seconds:p99_rate5m",
        "histogram_quantile(0.99, sum by (le) (rate(switchyard_limiter_seconds_bucket[5m])))",
    ),
    Recording(
        "deployment:switchyard_slots:ratio",
        "sum by (deployment) (switchyard_slots_in_use) / sum by (deployment) (switchyard_slots_limit)",
    ),
    Recording(
        "deployment:switchyard_cached_input_tokens:ratio_rate5m",
        "sum by (deployment) (rate(switchyard_cached_input_tokens_total[5m]))"
        " / (sum by (deployment) (rate(switchyard_input_tokens_total[5m])) > 0)",
    ),
)

ALERTS = (
    Alert(
        "SwitchyardAbsent", 'up{job="switchyard"}', "==", 0, "1m", "page",
        "The gateway {{ $labels.instance }} tells no metrics",
        "Prometheus cannot scrape it: it is down, or its port is not reachable.",
    ),
    Alert(
        "SwitchyardNotReady", "sum by (instance) (switchyard_workers) - sum by (instance) (switchyard_workers_ready)", ">", 0,
        "3m",
        "page", "{{ $value }} workers of {{ $labels.instance }} take no traffic",
        "An engine loads, the limit store is full, or it drains.",
    ),
    Alert(
        "SwitchyardFailures", "model:switchyard_request_failures:ratio_rate5m", ">", 0.05, "5m", "page",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} fail", "By no fault of the clients.",
    ),
    Alert(
        "SwitchyardSlowFirstToken", "model:switchyard_time_to_first_token_seconds:p95_rate5m", ">", 20, "10m", "ticket",
        "The first token of {{ $labels.model }} takes {{ $value | humanizeDuration }} (p95)", "Queueing included.",
    ),
    Alert(
        "SwitchyardDeploymentIll", "max by (deployment) (switchyard_breaker_open)", ">", 0, "5m", "ticket",
        "The deployment {{ $labels.deployment }} fails", "Its breaker is open: it is tried after all others.",
    ),
    Alert(
        "SwitchyardDeploymentFails", "deployment:switchyard_attempt_failures:ratio_rate5m", ">", 0.25, "10m", "ticket",
        "{{ $value | humanizePercentage }} of the attempts on {{ $labels.deployment }} fail", "Others may answer in its place.",
    ),
    Alert(
        "SwitchyardDeploymentFull", "deployment:switchyard_slots:ratio", ">", 0.95, "15m", "ticket",
        "The deployment {{ $labels.deployment }} is full", "Requests for it wait or are refused.",
    ),
    Alert(
        "SwitchyardQueueLong", "sum(switchyard_queue_depth)", ">", 1000, "5m", "page",
        "{{ $value }} requests wait for a slot", "server.queue_length refuses what is beyond.",
    ),
    Alert(
        "SwitchyardEngineDown", "max by (engine) (switchyard_engine_failed)", ">", 0, "2m", "page",
        "The engine {{ $labels.engine }} is down", "It crashed and does not come up again, or its model cannot be loaded.",
    ),
    Alert(
        "SwitchyardOverhead", "switchyard_overhead_seconds:p99_rate5m", ">", 0.1, "10m", "ticket",
        "The gateway itself adds {{ $value | humanizeDuration }} (p99)",
        "Workers are short of CPU, or the limit store is slow.",
    ),
    Alert(
        "SwitchyardLoopLate", "max by (instance) (switchyard_event_loop_lag_seconds)", ">", 0.25, "5m", "ticket",
        "A worker of {{ $labels.instance }} is {{ $value | humanizeDuration }} late", "It has more to do than one core does.",
    ),
    Alert(
        "SwitchyardLimiterOut", "max by (instance) (switchyard_limiter_degraded)", ">", 0, "1m", "page",
        "{{ $labels.instance }} does not reach the limit store",
        "Requests are refused (503), or let through uncounted where a limit says so.",
    ),
    Alert(
        "SwitchyardLimiterSlow", "switchyard_limiter_seconds:p99_rate5m", ">", 0.025, "10m", "ticket",
        "An admission takes {{ $value | humanizeDuration }} (p99)", "redis.timeout_ms ends it.",
    ),
    Alert(
        "SwitchyardUncounted", "sum(increase(switchyard_degraded_admissions_total[10m]))", ">", 0, "0m", "ticket",
        "{{ $value }} requests were admitted uncounted", "Limits with on_outage: allow, while the limit store was out.",
    ),
    Alert(
        "SwitchyardCountersPoisoned", "sum(increase(switchyard_limit_poisoned_total[10m]))", ">", 0, "0m", "ticket",
        "Counters in Redis hold what no script wrote", "Somebody else writes to the same Redis.",
    ),
    Alert(
        "SwitchyardLedgerLate", "max(switchyard_usage_stream_lag_seconds)", ">", 60, "5m", "page",
        "Rows wait {{ $value | humanizeDuration }} for SQL",
        "The ledger role or its database does not work; rows stay in Redis.",
    ),
    Alert(
        "SwitchyardSpooling", "sum by (instance) (switchyard_ledger_spool_bytes)", ">", 0, "5m", "ticket",
        "{{ $labels.instance }} keeps settlements on disk", "Redis does not take them.",
    ),
    Alert(
        "SwitchyardRowsLost", "sum(increase(switchyard_settlements_lost_total[15m]))", ">", 0, "0m", "page",
        "{{ $value }} ledger rows could be kept nowhere", "Each is in the log.",
    ),
    Alert(
        "SwitchyardConfigurationRefused", "max by (instance) (switchyard_config_reload_failed)", ">", 0, "5m", "ticket",
        "{{ $labels.instance }} refuses its configuration file", "It goes on with the last good one.",
    ),
    Alert(
        "SwitchyardLogLost", "sum(increase(switchyard_log_lines_dropped_total[10m]))", ">", 0, "0m", "ticket",
        "{{ $value }} log lines were lost", "Standard output is blocked.",
    ),
    Alert(
        "SwitchyardCertificateEnds", "(min(switchyard_certificate_end_timestamp_seconds) - time()) / 86400", "<", 14, "1h",
        "ticket",
        "The API's certificate ends in {{ $value | humanize }} days", "It is read again as soon as its file is renewed.",
    ),
    Alert(
        "SwitchyardVersionsDiffer", "count(count by (version) (switchyard_build_info))", ">", 1, "1h", "ticket",
        "Gateways of several versions run", "A roll-out has stopped half-way.",
    ),
)  # fmt: skip


def rules(runbooks: str = RUNBOOKS) -> dict[str, object]:
    """The rule file, as YAML's values; links to runbooks begin with `runbooks`."""
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.hold,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.about,
                "runbook_url": f"{runbooks}#{alert.anchor}",
            },
        }
        for alert in ALERTS
    ]
    recordings = [{"record": one.record, "expr": one.expr} for one in RECORDINGS]
    return {
        "groups": [
            {"name": "switchyard-recordings", "interval": "30s", "rules": recordings},
            {"name": "switchyard-alerts", "interval": "30s", "rules": alerts},
        ]
    }
