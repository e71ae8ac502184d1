"""The dashboard *Limiter and ledger*: whether limits are counted and rows arrive."""

from __future__ import annotations

from deploy.dashboards.fleet import R, quantile
from deploy.dashboards.model import Dashboard, Panel, Query, Row

REDIS = Row(
    "Limit store",
    (
        Panel(
            "Admission",
            "How long an admission waits for the limit store.",
            tuple(Query(quantile(q, "switchyard_limiter_seconds"), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
            "s",
            warn=0.01,
            bad=0.05,
        ),
        Panel(
            "Out",
            "1 while some worker does not reach the limit store.",
            (Query("max(switchyard_limiter_degraded)", "out"),),
            top=1,
            bad=1,
        ),
        Panel(
            "Outages",
            "Times that a worker stopped asking, in the last hour.",
            (Query("sum(increase(switchyard_limiter_outages_total[1h]))", "outages"),),
            kind="stat",
            bad=1,
        ),
        Panel(
            "Admitted uncounted",
            "Admissions let through while the store was out, by limits that say `on_outage: allow`.",
            (Query(f"sum(rate(switchyard_degraded_admissions_total[{R}]))", "uncounted"),),
            "reqps",
        ),
        Panel(
            "Overruns",
            "Settlements above what was reserved: estimates of prompts that were too low.",
            (Query(f"sum(rate(switchyard_limit_overrun_total[{R}]))", "overruns"),),
        ),
        Panel(
            "Poisoned counters",
            "Admissions that met a counter which no script wrote.",
            (Query(f"sum(rate(switchyard_limit_poisoned_total[{R}]))", "poisoned"),),
            bad=0.001,
        ),
    ),
)
LEDGER = Row(
    "Ledger",
    (
        Panel(
            "Stream lag",
            "Age of the oldest row in Redis that is not in SQL yet.",
            (Query("max(switchyard_usage_stream_lag_seconds)", "oldest"),),
            "s",
            warn=10,
            bad=60,
        ),
        Panel(
            "Rows that wait",
            "In Redis for SQL, in the workers' memory for Redis.",
            (
                Query("max(switchyard_usage_stream_rows)", "in Redis"),
                Query("sum(switchyard_ledger_queue_rows)", "in memory"),
            ),
        ),
        Panel(
            "Rows written",
            "Rows committed to SQL, a second. Through Redis every gateway tells the whole, so the largest is shown.",
            (Query(f"max(rate(switchyard_ledger_rows_written_total[{R}]))", "written"),),
        ),
        Panel(
            "Spool",
            "Settlements on the workers' disks that wait for Redis.",
            (Query("sum(switchyard_ledger_spool_bytes)", "spooled"),),
            "bytes",
        ),
        Panel(
            "Rows lost",
            "Rows that could be kept nowhere; each is in the log.",
            (Query("sum(increase(switchyard_settlements_lost_total[1h]))", "in the last hour"),),
            kind="stat",
            bad=1,
        ),
        Panel(
            "Log lines lost",
            "Because standard output was blocked.",
            (Query("sum(increase(switchyard_log_lines_dropped_total[1h]))", "in the last hour"),),
            kind="stat",
            warn=1,
        ),
    ),
)
LIMITER = Dashboard(
    "switchyard-limiter",
    "Switchyard: limiter and ledger",
    "The limit store and the way of the rows into SQL.",
    (REDIS, LEDGER),
)
