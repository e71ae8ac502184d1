"""The catalogue of metrics: names with units, labels, buckets, and how several processes' values become one.

Labels are `model`, `deployment`, `engine`, `outcome`, `scope`, `unit` and `version`, never a key, a user or anything that a
client chose: models, deployments and engines come from the configuration, the others from fixed lists. Durations are
seconds, sizes bytes (Prometheus, "Metric and label naming").
"""

from __future__ import annotations

from typing import Literal

import msgspec

#: The label of what belongs to no configured model or deployment.
OTHER = "other"


class Family(msgspec.Struct, frozen=True):
    """One metric. `bounds`: a histogram's upper bounds, without +Inf. `merge`: over processes."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    merge: Literal["sum", "max"] = "sum"

    def zero(self) -> list[float]:
        """A fresh child: one value; of a histogram the buckets, +Inf and the sum."""
        return [0.0] * (len(self.bounds) + 2) if self.kind == "histogram" else [0.0]


_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_WAIT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: The same numbers as the Tally's, in seconds; a test holds them together.
ITL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)

_MD = ("model", "deployment")
_MDO = ("model", "deployment", "outcome")

REQUESTS = Family("switchyard_requests_total", "Requests that ended.", "counter", _MDO)
DURATION = Family("switchyard_request_duration_seconds", "From the request's head to its last byte.", "histogram", _MD, _LONG)
TTFT = Family("switchyard_time_to_first_token_seconds", "From the request's head to the first delta.", "histogram", _MD, _LONG)
ITL = Family("switchyard_inter_token_latency_seconds", "Between two deliveries of deltas.", "histogram", _MD, ITL_BOUNDS_S)
INPUT_TOKENS = Family("switchyard_input_tokens_total", "Prompt tokens, cached ones included.", "counter", _MD)
CACHED_TOKENS = Family("switchyard_cached_input_tokens_total", "Prompt tokens from a prefix cache.", "counter", _MD)
OUTPUT_TOKENS = Family("switchyard_output_tokens_total", "Generated tokens, reasoning included.", "counter", _MD)
REASONING_TOKENS = Family("switchyard_reasoning_tokens_total", "Generated reasoning tokens.", "counter", _MD)
OVERHEAD = Family(
    "switchyard_overhead_seconds", "Duration less the time of attempts and of the queue: what we added.", "histogram", (), _FAST
)
LIMITER = Family("switchyard_limiter_seconds", "Admission in the limit store.", "histogram", (), _FAST)
QUEUE_WAIT = Family("switchyard_queue_wait_seconds", "Waited for a slot (those who had to).", "histogram", _MD, _WAIT)
ATTEMPTS = Family(
    "switchyard_attempts_total", "Tries on a deployment, by how they ended.", "counter", ("deployment", "outcome")
)
FALLBACKS = Family("switchyard_fallbacks_total", "Tries after a first one that failed.", "counter", ("model",))
REFUSALS = Family(
    "switchyard_refusals_total", "Requests that the gateway itself refused, by reason.", "counter", ("model", "outcome")
)
OPEN_STREAMS = Family("switchyard_open_streams", "Requests being answered now.", "gauge")
LIMITER_DEGRADED = Family("switchyard_limiter_degraded", "1 while the limit store is out.", "gauge", merge="max")
LIMIT_OVERRUN = Family("switchyard_limit_overrun_total", "Settlements above what was reserved.", "counter")
LIMIT_NEAR = Family(
    "switchyard_limit_near_total", "Admissions that left 20 % of a limit or less.", "counter", ("scope", "unit")
)
LIMIT_SHADOW = Family(
    "switchyard_limit_shadow_refusals_total", "Admissions that a shadow limit would have refused.", "counter", ("scope", "unit")
)
LIMIT_POISONED = Family(
    "switchyard_limit_poisoned_total", "Admissions that met a counter which holds what no script wrote.", "counter"
)
DEGRADED_ADMISSIONS = Family(
    "switchyard_degraded_admissions_total", "Admissions let through uncounted while the limit store was out.", "counter"
)
LEDGER_QUEUE = Family("switchyard_ledger_queue_rows", "Ledger rows that are not yet acknowledged.", "gauge")
CONFIG_FAILED = Family(
    "switchyard_config_reload_failed", "1 while the configuration file on disk is refused.", "gauge", merge="max"
)
LOG_DROPPED = Family("switchyard_log_lines_dropped_total", "Log lines lost because standard output was blocked.", "counter")
QUEUE_DEPTH = Family("switchyard_queue_depth", "Requests that wait for a slot of the deployment.", "gauge", ("deployment",))
SLOTS_IN_USE = Family("switchyard_slots_in_use", "Requests in flight on a deployment with a bound.", "gauge", ("deployment",))
SLOTS_LIMIT = Family("switchyard_slots_limit", "The bound.", "gauge", ("deployment",))
WORKERS = Family("switchyard_workers", "Worker processes that answered this scrape.", "gauge")
WORKERS_READY = Family("switchyard_workers_ready", "Worker processes that say that they should get traffic.", "gauge")
WORKER_MEMORY = Family("switchyard_worker_resident_bytes", "Resident memory of the workers.", "gauge")
WORKER_FDS = Family("switchyard_worker_open_fds", "File descriptors that the workers have open.", "gauge")
WORKER_CPU = Family("switchyard_worker_cpu_seconds_total", "CPU time of the workers, user and system.", "counter")
LOOP_LAG = Family(
    "switchyard_event_loop_lag_seconds", "How late the slowest worker's event loop was at its last tick.", "gauge", merge="max"
)
BUILD = Family("switchyard_build_info", "1, with the version that runs.", "gauge", ("version",), merge="max")
CONFIG_LOADED = Family(
    "switchyard_config_loaded_timestamp_seconds", "When the present configuration was taken.", "gauge", merge="max"
)
CERTIFICATE_ENDS = Family(
    "switchyard_certificate_end_timestamp_seconds", "When the API's TLS certificate ends.", "gauge", merge="max"
)
BREAKER_OPEN = Family(
    "switchyard_breaker_open", "Workers that try the deployment last, because it failed.", "gauge", ("deployment",)
)
LIMIT_REFUSALS = Family(
    "switchyard_limit_refusals_total", "Admissions that a limit refused (429), by that limit.", "counter", ("scope", "unit")
)
LIMITER_OUTAGES = Family("switchyard_limiter_outages_total", "Times that a worker stopped asking the limit store.", "counter")
SETTLEMENTS_LOST = Family(
    "switchyard_settlements_lost_total", "Ledger rows that could be kept nowhere; each is in the log.", "counter"
)
LEDGER_SPOOL = Family("switchyard_ledger_spool_bytes", "Settlements on disk that wait for the limit store.", "gauge")
LEDGER_WRITTEN = Family(
    "switchyard_ledger_rows_written_total",
    "Rows committed to SQL. Through Redis: by all gateways on it, and each of them tells the whole.",
    "counter",
)
STREAM_ROWS = Family(
    "switchyard_usage_stream_rows", "Rows in Redis that are not in SQL yet, of all gateways on it.", "gauge", merge="max"
)
STREAM_LAG = Family("switchyard_usage_stream_lag_seconds", "Age of the oldest of them.", "gauge", merge="max")
_E = ("engine",)
ENGINE_RUNNING = Family("switchyard_engine_running", "Sequences in the engine's batch.", "gauge", _E, merge="max")
ENGINE_QUEUED = Family("switchyard_engine_queued", "Sequences that wait for one of its slots.", "gauge", _E, merge="max")
ENGINE_SLOTS = Family("switchyard_engine_slots", "Sequences that it computes at once.", "gauge", _E, merge="max")
ENGINE_KV = Family("switchyard_engine_kv_used_tokens", "Tokens of running sequences in its cache.", "gauge", _E, merge="max")
ENGINE_KV_SIZE = Family("switchyard_engine_kv_size_tokens", "Tokens that its cache holds.", "gauge", _E, merge="max")
ENGINE_MEMORY = Family(
    "switchyard_engine_resident_bytes", "Resident memory of its process, without a GPU's.", "gauge", _E, merge="max"
)
ENGINE_READY = Family("switchyard_engine_ready", "1 while its model is loaded.", "gauge", _E, merge="max")
ENGINE_FAILED = Family("switchyard_engine_failed", "1 after its process died, until it is loaded.", "gauge", _E, merge="max")
ENGINE_LOADS = Family("switchyard_engine_loads", "Processes started for it so far.", "gauge", _E, merge="max")
ENGINE_STEPS = Family("switchyard_engine_steps_total", "Steps that it computed.", "counter", _E)
#: vLLM's own, by its names less `vllm:` (`vllm/v1/metrics/loggers.py` of 0.32); sums over its engine cores.
VLLM_GAUGES = {
    name: Family(f"switchyard_vllm_{name}", text, "gauge", _E, merge="max")
    for name, text in (
        ("num_requests_running", "Requests in vLLM's batch."),
        ("num_requests_waiting", "Requests that wait in vLLM."),
        ("kv_cache_usage_perc", "Used part of vLLM's cache, 0 to 1."),
    )
}
VLLM_COUNTERS = {
    name: Family(f"switchyard_vllm_{ours}", text, "counter", _E)
    for name, ours, text in (
        ("num_preemptions_total", "preemptions_total", "Requests that vLLM put off for want of cache."),
        ("prefix_cache_queries_total", "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
        ("prefix_cache_hits_total", "prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
        ("prompt_tokens_total", "prompt_tokens_total", "Prompt tokens that vLLM read."),
        ("generation_tokens_total", "generation_tokens_total", "Tokens that vLLM made."),
        ("spec_decode_num_draft_tokens_total", "draft_tokens_total", "Tokens that speculation proposed."),
        ("spec_decode_num_accepted_tokens_total", "accepted_tokens_total", "Proposed tokens that were right."),
        ("request_queue_time_seconds_sum", "queue_seconds_total", "Seconds that requests waited in vLLM, summed."),
        ("request_prefill_time_seconds_sum", "prefill_seconds_total", "Seconds that prompts took in vLLM, summed."),
        ("request_decode_time_seconds_sum", "decode_seconds_total", "Seconds that answers took in vLLM, summed."),
    )
}

#: By name, in the order above.
FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (*list(globals().values()), *VLLM_GAUGES.values(), *VLLM_COUNTERS.values())
    if isinstance(one, Family)
}
