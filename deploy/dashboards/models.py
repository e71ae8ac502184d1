"""The dashboard *Models and backends*: which deployment is ill, full or slow, and what the local engines do."""

from __future__ import annotations

from deploy.dashboards.fleet import R, quantile
from deploy.dashboards.model import Dashboard, Panel, Query, Row, Variable

D = 'deployment=~"$deployment"'

HEALTH = Row(
    "Health",
    (
        Panel(
            "Attempts by outcome",
            "Tries on deployments, a second, by how they ended.",
            (
                Query(
                    f"sum by (deployment, outcome) (rate(switchyard_attempts_total{{{D}}}[{R}])) > 0",
                    "{{deployment}} {{outcome}}",
                ),
            ),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Failed attempts",
            "The part of a deployment's attempts that failed.",
            (
                Query(
                    f'sum by (deployment) (rate(switchyard_attempts_total{{{D},outcome!="ok"}}[{R}]))'
                    f" / sum by (deployment) (rate(switchyard_attempts_total{{{D}}}[{R}]))",
                    "{{deployment}}",
                ),
            ),
            "percentunit",
            top=1,
            warn=0.05,
            bad=0.25,
        ),
        Panel(
            "Open breakers",
            "Workers that try the deployment last because it failed three times in a row.",
            (Query(f"sum by (deployment) (switchyard_breaker_open{{{D}}})", "{{deployment}}"),),
            kind="bargauge",
            bad=1,
        ),
        Panel(
            "Fallbacks",
            "Tries after a first one that failed, a second, by model.",
            (Query(f"sum by (model) (rate(switchyard_fallbacks_total[{R}])) > 0", "{{model}}"),),
            "reqps",
        ),
        Panel(
            "Time to first token by deployment, p95",
            "From the request's head, so a first deployment's failing counts for the one that answered.",
            (Query(quantile(0.95, "switchyard_time_to_first_token_seconds", "deployment", D), "{{deployment}}"),),
            "s",
        ),
        Panel(
            "Inter-token latency by deployment, p95",
            "Between two deliveries of deltas.",
            (Query(quantile(0.95, "switchyard_inter_token_latency_seconds", "deployment", D), "{{deployment}}"),),
            "s",
        ),
    ),
)
LOAD = Row(
    "Queue and slots",
    (
        Panel(
            "Queue",
            "Requests that wait for a slot; one that would take several deployments counts in each.",
            (Query(f"sum by (deployment) (switchyard_queue_depth{{{D}}})", "{{deployment}}"),),
        ),
        Panel(
            "Slots taken",
            "Requests in flight, of the deployment's bound.",
            (
                Query(
                    f"sum by (deployment) (switchyard_slots_in_use{{{D}}})"
                    f" / sum by (deployment) (switchyard_slots_limit{{{D}}})",
                    "{{deployment}}",
                ),
            ),
            "percentunit",
            top=1,
            warn=0.8,
            bad=0.95,
        ),
        Panel(
            "Waiting for a slot, p95",
            "Of the requests that had to wait.",
            (Query(quantile(0.95, "switchyard_queue_wait_seconds", "deployment", D), "{{deployment}}"),),
            "s",
        ),
        Panel(
            "Generated tokens",
            "Tokens a second by deployment.",
            (Query(f"sum by (deployment) (rate(switchyard_output_tokens_total{{{D}}}[{R}]))", "{{deployment}}"),),
        ),
        Panel(
            "Cache reuse",
            "The part of prompt tokens that came from a backend's prefix cache.",
            (
                Query(
                    f"sum by (deployment) (rate(switchyard_cached_input_tokens_total{{{D}}}[{R}]))"
                    f" / sum by (deployment) (rate(switchyard_input_tokens_total{{{D}}}[{R}]))",
                    "{{deployment}}",
                ),
            ),
            "percentunit",
            top=1,
        ),
        Panel(
            "Reasoning",
            "The part of generated tokens that is reasoning.",
            (
                Query(
                    f"sum by (deployment) (rate(switchyard_reasoning_tokens_total{{{D}}}[{R}]))"
                    f" / sum by (deployment) (rate(switchyard_output_tokens_total{{{D}}}[{R}]))",
                    "{{deployment}}",
                ),
            ),
            "percentunit",
            top=1,
        ),
    ),
)
ENGINES = Row(
    "Local engines",
    (
        Panel(
            "State",
            "Loaded, and failed (its process died or its model cannot be loaded). Neither: unloaded, or loading.",
            (
                Query("max by (engine) (switchyard_engine_ready)", "{{engine}} loaded"),
                Query("max by (engine) (switchyard_engine_failed)", "{{engine}} failed"),
            ),
            kind="bargauge",
            top=1,
        ),
        Panel(
            "Loads",
            "Processes started for the engine so far: one, and one for each loading on demand or after a crash.",
            (Query("max by (engine) (switchyard_engine_loads)", "{{engine}}"),),
            kind="stat",
        ),
        Panel(
            "Sequences",
            "In the batch, and waiting inside the engine.",
            (
                Query("sum by (engine) (switchyard_engine_running)", "{{engine}} running"),
                Query("sum by (engine) (switchyard_engine_queued)", "{{engine}} waiting"),
                Query("sum by (engine) (switchyard_engine_slots)", "{{engine}} slots"),
            ),
        ),
        Panel(
            "Cache in use",
            "Tokens of running sequences, of what the engine's cache holds.",
            (
                Query(
                    "sum by (engine) (switchyard_engine_kv_used_tokens) / sum by (engine) (switchyard_engine_kv_size_tokens)",
                    "{{engine}}",
                ),
            ),
            "percentunit",
            top=1,
        ),
        Panel(
            "Memory",
            "Resident memory of the engine's process; a GPU's is not in it.",
            (Query("sum by (engine) (switchyard_engine_resident_bytes)", "{{engine}}"),),
            "bytes",
        ),
        Panel(
            "Steps",
            "Steps computed, a second.",
            (Query(f"sum by (engine) (rate(switchyard_engine_steps_total[{R}]))", "{{engine}}"),),
        ),
    ),
)


def _rate(name: str) -> str:
    return f"sum by (engine) (rate(switchyard_vllm_{name}[{R}]))"


VLLM = Row(
    "vLLM",
    (
        Panel(
            "vLLM: requests",
            "In vLLM's batch, waiting in it, and put off for want of cache (a second).",
            (
                Query("sum by (engine) (switchyard_vllm_num_requests_running)", "{{engine}} running"),
                Query("sum by (engine) (switchyard_vllm_num_requests_waiting)", "{{engine}} waiting"),
                Query(_rate("preemptions_total"), "{{engine}} put off"),
            ),
        ),
        Panel(
            "vLLM: cache and speculation",
            "Used part of the cache, prompt tokens found in it, proposed tokens that were right.",
            (
                Query("max by (engine) (switchyard_vllm_kv_cache_usage_perc)", "{{engine}} cache used"),
                Query(f"{_rate('prefix_cache_hits_total')} / {_rate('prefix_cache_queries_total')}", "{{engine}} prefix hits"),
                Query(f"{_rate('accepted_tokens_total')} / {_rate('draft_tokens_total')}", "{{engine}} proposals right"),
            ),
            "percentunit",
            top=1,
        ),
        Panel(
            "vLLM: tokens",
            "Read and made, a second.",
            (
                Query(_rate("prompt_tokens_total"), "{{engine}} read"),
                Query(_rate("generation_tokens_total"), "{{engine}} made"),
            ),
        ),
        Panel(
            "vLLM: requests by what they do",
            "Requests that were waiting, reading their prompt, or answering, on average: seconds of it a second.",
            (
                Query(_rate("queue_seconds_total"), "{{engine}} waiting"),
                Query(_rate("prefill_seconds_total"), "{{engine}} reading"),
                Query(_rate("decode_seconds_total"), "{{engine}} answering"),
            ),
        ),
    ),
)
MODELS = Dashboard(
    "switchyard-models",
    "Switchyard: models and backends",
    "Deployments and engines: health, breakers, queues, slots, cache reuse, memory.",
    (HEALTH, LOAD, ENGINES, VLLM),
    (Variable("deployment", "switchyard_attempts_total"),),
)
