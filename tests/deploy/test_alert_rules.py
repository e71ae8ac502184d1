"""Prometheus' own checks: the rule file is valid, and each alert fires where it should, and only there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from deploy.dashboards.alerts import ALERTS
from tests.deploy.prometheus_server import RULES

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH (apt: prometheus)")
#: Longer than any alert holds, in steps of a minute.
MINUTES = 120


class Case(NamedTuple):
    """Series (promtool's notation; `{n}` is the number of minutes) and the alerts that fire at the end."""

    series: dict[str, str]
    fires: set[str]


def steady(value: float) -> str:
    return f"{value:g}x{MINUTES}"


def growing(by: float) -> str:
    return f"0+{by:g}x{MINUTES}"


def bucket(metric: str, low: str, high: str, labels: str = "") -> dict[str, str]:
    """A histogram of which a tenth lies between two bounds, above the 90th percentile."""
    some = f"{labels}," if labels else ""
    return {
        f'{metric}_bucket{{{some}le="{low}"}}': growing(90),
        f'{metric}_bucket{{{some}le="{high}"}}': growing(100),
        f'{metric}_bucket{{{some}le="+Inf"}}': growing(100),
    }


UP = 'up{job="switchyard",instance="a"}'
REQUESTS, ATTEMPTS = "switchyard_requests_total", "switchyard_attempts_total"
TTFT = "switchyard_time_to_first_token_seconds"
CASES = {
    "absent": Case({UP: steady(0)}, {"SwitchyardAbsent"}),
    "there": Case({UP: steady(1)}, set()),
    "not ready": Case(
        {'switchyard_workers{instance="a"}': steady(4), 'switchyard_workers_ready{instance="a"}': steady(3)},
        {"SwitchyardNotReady"},
    ),
    "ready": Case({'switchyard_workers{instance="a"}': steady(4), 'switchyard_workers_ready{instance="a"}': steady(4)}, set()),
    "failures": Case(
        {
            f'{REQUESTS}{{model="m",outcome="ok"}}': growing(90),
            f'{REQUESTS}{{model="m",outcome="upstream_error"}}': growing(10),
        },
        {"SwitchyardFailures"},
    ),
    "failures of clients": Case(
        {
            f'{REQUESTS}{{model="m",outcome="ok"}}': growing(50),
            f'{REQUESTS}{{model="m",outcome="client_error"}}': growing(50),
            f'{REQUESTS}{{model="m",outcome="refused"}}': growing(50),
            f'{REQUESTS}{{model="m",outcome="cancelled"}}': growing(50),
        },
        set(),
    ),
    "slow first token": Case(bucket(TTFT, "10", "40", 'model="m"'), {"SwitchyardSlowFirstToken"}),
    "quick first token": Case(bucket(TTFT, "0.5", "1", 'model="m"'), set()),
    "ill": Case({'switchyard_breaker_open{deployment="d"}': steady(1)}, {"SwitchyardDeploymentIll"}),
    "well": Case({'switchyard_breaker_open{deployment="d"}': steady(0)}, set()),
    "attempts fail": Case(
        {
            f'{ATTEMPTS}{{deployment="d",outcome="ok"}}': growing(70),
            f'{ATTEMPTS}{{deployment="d",outcome="timeout"}}': growing(30),
        },
        {"SwitchyardDeploymentFails"},
    ),
    "a few attempts fail": Case(
        {
            f'{ATTEMPTS}{{deployment="d",outcome="ok"}}': growing(80),
            f'{ATTEMPTS}{{deployment="d",outcome="timeout"}}': growing(20),
        },
        set(),
    ),
    "full": Case(
        {'switchyard_slots_in_use{deployment="d"}': steady(100), 'switchyard_slots_limit{deployment="d"}': steady(100)},
        {"SwitchyardDeploymentFull"},
    ),
    "busy": Case(
        {'switchyard_slots_in_use{deployment="d"}': steady(90), 'switchyard_slots_limit{deployment="d"}': steady(100)}, set()
    ),
    "long queue": Case({'switchyard_queue_depth{deployment="d"}': steady(1001)}, {"SwitchyardQueueLong"}),
    "queue": Case({'switchyard_queue_depth{deployment="d"}': steady(1000)}, set()),
    "engine down": Case({'switchyard_engine_failed{engine="e"}': steady(1)}, {"SwitchyardEngineDown"}),
    "engine up": Case({'switchyard_engine_failed{engine="e"}': steady(0)}, set()),
    "overhead": Case(bucket("switchyard_overhead_seconds", "0.1", "0.25"), {"SwitchyardOverhead"}),
    "little overhead": Case(bucket("switchyard_overhead_seconds", "0.001", "0.0025"), set()),
    "late loop": Case({'switchyard_event_loop_lag_seconds{instance="a"}': steady(0.3)}, {"SwitchyardLoopLate"}),
    "punctual loop": Case({'switchyard_event_loop_lag_seconds{instance="a"}': steady(0.25)}, set()),
    "limiter out": Case({'switchyard_limiter_degraded{instance="a"}': steady(1)}, {"SwitchyardLimiterOut"}),
    "limiter there": Case({'switchyard_limiter_degraded{instance="a"}': steady(0)}, set()),
    "limiter slow": Case(bucket("switchyard_limiter_seconds", "0.025", "0.05"), {"SwitchyardLimiterSlow"}),
    "limiter quick": Case(bucket("switchyard_limiter_seconds", "0.001", "0.0025"), set()),
    "uncounted": Case({"switchyard_degraded_admissions_total": growing(1)}, {"SwitchyardUncounted"}),
    "all counted": Case({"switchyard_degraded_admissions_total": steady(7)}, set()),
    "poisoned": Case({"switchyard_limit_poisoned_total": growing(1)}, {"SwitchyardCountersPoisoned"}),
    "once poisoned": Case({"switchyard_limit_poisoned_total": steady(7)}, set()),
    "late ledger": Case({"switchyard_usage_stream_lag_seconds": steady(61)}, {"SwitchyardLedgerLate"}),
    "ledger": Case({"switchyard_usage_stream_lag_seconds": steady(60)}, set()),
    "spooling": Case({'switchyard_ledger_spool_bytes{instance="a"}': steady(1)}, {"SwitchyardSpooling"}),
    "no spool": Case({'switchyard_ledger_spool_bytes{instance="a"}': steady(0)}, set()),
    "rows lost": Case({"switchyard_settlements_lost_total": growing(1)}, {"SwitchyardRowsLost"}),
    "rows once lost": Case({"switchyard_settlements_lost_total": steady(3)}, set()),
    "configuration refused": Case(
        {'switchyard_config_reload_failed{instance="a"}': steady(1)}, {"SwitchyardConfigurationRefused"}
    ),
    "configuration taken": Case({'switchyard_config_reload_failed{instance="a"}': steady(0)}, set()),
    "log lost": Case({"switchyard_log_lines_dropped_total": growing(1)}, {"SwitchyardLogLost"}),
    "log once lost": Case({"switchyard_log_lines_dropped_total": steady(9)}, set()),
    # promtool's clock begins at 0
    "certificate ends": Case(
        {"switchyard_certificate_end_timestamp_seconds": steady(13 * 86_400)}, {"SwitchyardCertificateEnds"}
    ),
    "certificate": Case({"switchyard_certificate_end_timestamp_seconds": steady(30 * 86_400)}, set()),
    "versions differ": Case(
        {
            'switchyard_build_info{version="1",instance="a"}': steady(1),
            'switchyard_build_info{version="2",instance="b"}': steady(1),
        },
        {"SwitchyardVersionsDiffer"},
    ),
    "one version": Case(
        {
            'switchyard_build_info{version="1",instance="a"}': steady(1),
            'switchyard_build_info{version="1",instance="b"}': steady(1),
        },
        set(),
    ),
}


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rule_file_is_valid() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yml")))


def test_every_alert_has_a_case_that_fires_it() -> None:
    assert {name for case in CASES.values() for name in case.fires} == {alert.name for alert in ALERTS}


def test_alerts_fire_where_they_should_and_only_there(tmp_path: Path) -> None:
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{MINUTES - 1}m",
                    "exp_samples": [{"labels": f'{{alertname="{fired}"}}', "value": 1} for fired in sorted(case.fires)],
                }
            ],
        }
        for name, case in CASES.items()
    ]
    file = tmp_path / "alerts.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


def test_an_alert_waits_for_its_time(tmp_path: Path) -> None:
    """Each alert but those that fire at once is pending when half of its time is over."""
    waiting = [alert for alert in ALERTS if alert.hold != "0m"]
    assert len(waiting) >= len(ALERTS) - 5
    ill = {"series": 'switchyard_breaker_open{deployment="d"}', "values": steady(1)}
    states = [("2m", "pending"), ("6m", "firing")]
    tests = [
        {
            "interval": "1m",
            "input_series": [ill],
            "promql_expr_test": [
                {
                    "expr": "count by (alertstate) (ALERTS)",
                    "eval_time": at,
                    "exp_samples": [{"labels": f'{{alertstate="{state}"}}', "value": 1}],
                }
                for at, state in states
            ],
        }
    ]
    file = tmp_path / "waiting.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
