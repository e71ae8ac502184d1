"""The dashboard *Fleet*: is it well, for whom not, how fast, how full."""

from __future__ import annotations

from deploy.dashboards.model import Dashboard, Panel, Query, Row, Variable

R = "$__rate_interval"
M = 'model=~"$model"'
#: Outcomes that are nobody's wish: what the gateway or a backend failed to do.
FAILED = 'outcome=~"upstream_error|gateway_error|abandoned"'


def quantile(q: float, metric: str, by: str = "", labels: str = "") -> str:
    """A quantile of a histogram over the panel's interval, by a label."""
    keep = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({keep}) (rate({metric}_bucket{{{labels}}}[{R}])))"


TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests by outcome",
            "Requests that ended, a second. `refused` is a key, a limit or a model; `cancelled` is a client that left.",
            (Query(f"sum by (outcome) (rate(switchyard_requests_total{{{M}}}[{R}])) > 0", "{{outcome}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Failures",
            "The part of requests that failed by no fault of the client's.",
            (
                Query(
                    f"(sum(rate(switchyard_requests_total{{{M},{FAILED}}}[{R}])) or vector(0))"
                    f" / sum(rate(switchyard_requests_total{{{M}}}[{R}]))",
                    "failed",
                ),
            ),
            "percentunit",
            warn=0.01,
            bad=0.05,
        ),
        Panel(
            "Refusals by reason",
            "What the gateway itself refused, by reason: keys, limits, unknown models, wrong requests.",
            (Query(f"sum by (outcome) (rate(switchyard_refusals_total[{R}])) > 0", "{{outcome}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Tokens",
            "Tokens a second. Cached ones are a part of the prompt's, reasoning a part of the generated.",
            (
                Query(f"sum(rate(switchyard_input_tokens_total{{{M}}}[{R}]))", "prompt"),
                Query(f"sum(rate(switchyard_cached_input_tokens_total{{{M}}}[{R}]))", "prompt, from a cache"),
                Query(f"sum(rate(switchyard_output_tokens_total{{{M}}}[{R}]))", "generated"),
            ),
        ),
        Panel(
            "Requests by model",
            "Requests that ended, a second.",
            (Query(f"sum by (model) (rate(switchyard_requests_total{{{M}}}[{R}]))", "{{model}}"),),
            "reqps",
        ),
        Panel(
            "Open requests",
            "Requests being answered now.",
            (Query("sum(switchyard_open_streams)", "open"),),
        ),
    ),
)
SPEED = Row(
    "Speed",
    (
        Panel(
            "Time to first token",
            "From a request's head to its first delta, queueing included.",
            tuple(
                Query(quantile(q, "switchyard_time_to_first_token_seconds", "", M), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)
            ),
            "s",
        ),
        Panel(
            "Inter-token latency",
            "Between two deliveries of deltas of one stream.",
            tuple(
                Query(quantile(q, "switchyard_inter_token_latency_seconds", "", M), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)
            ),
            "s",
        ),
        Panel(
            "Time to first token by model, p95",
            "As above, by model.",
            (Query(quantile(0.95, "switchyard_time_to_first_token_seconds", "model", M), "{{model}}"),),
            "s",
        ),
        Panel(
            "Overhead",
            "A request's duration less the time of its attempts and of the queue: what the gateway added.",
            tuple(Query(quantile(q, "switchyard_overhead_seconds"), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
            "s",
            bad=0.1,
        ),
        Panel(
            "Waiting for a slot",
            "Of the requests that had to wait.",
            (Query(quantile(0.95, "switchyard_queue_wait_seconds", "model", M), "{{model}} p95"),),
            "s",
        ),
        Panel(
            "Duration, p95",
            "From a request's head to its last byte.",
            (Query(quantile(0.95, "switchyard_request_duration_seconds", "model", M), "{{model}}"),),
            "s",
        ),
    ),
)
SATURATION = Row(
    "Saturation",
    (
        Panel(
            "Slots taken",
            "Requests in flight on all bounded deployments, of what they take at once.",
            (Query("sum(switchyard_slots_in_use) / sum(switchyard_slots_limit)", "taken"),),
            "percentunit",
            top=1,
        ),
        Panel(
            "Workers' CPU",
            "Cores that the workers use; each has one event loop, so one core a worker is the end.",
            (
                Query(f"sum(rate(switchyard_worker_cpu_seconds_total[{R}]))", "cores used"),
                Query("sum(switchyard_workers)", "workers"),
            ),
        ),
        Panel(
            "Event loop lateness",
            "How late the slowest worker's loop was at its last tick.",
            (Query("max(switchyard_event_loop_lag_seconds)", "late"),),
            "s",
            warn=0.05,
            bad=0.25,
        ),
        Panel(
            "Workers' memory",
            "Resident memory of all workers.",
            (Query("sum(switchyard_worker_resident_bytes)", "resident"),),
            "bytes",
        ),
        Panel(
            "File descriptors",
            "Open in all workers: two a request in progress, and those of the pools.",
            (Query("sum(switchyard_worker_open_fds)", "open"),),
        ),
        Panel(
            "Workers",
            "Answering and ready. Below: which version runs.",
            (
                Query("sum(switchyard_workers)", "running"),
                Query("sum(switchyard_workers_ready)", "ready"),
                Query("count by (version) (switchyard_build_info)", "gateways of {{version}}"),
            ),
            kind="stat",
        ),
    ),
)
FLEET = Dashboard(
    "switchyard-fleet",
    "Switchyard: fleet",
    "All gateways: traffic, failures, speed, saturation.",
    (TRAFFIC, SPEED, SATURATION),
    (Variable("model", "switchyard_requests_total"),),
)
