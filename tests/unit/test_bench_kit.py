"""The pure parts of the bench kit: accounting, order, figures, verdicts and the page."""

from __future__ import annotations

import pytest

from tests.bench.accounting import cpu_between, cpu_times, pss_kib, tree
from tests.bench.engine_part import Round, compared, figures, rounds_table
from tests.bench.figures import Figure, cpu_us, errors, speed
from tests.bench.key_lookup import Lookup, lookup
from tests.bench.limits_cost import Client, Cost
from tests.bench.limits_part import costs_table
from tests.bench.limits_part import figures as limits_figures
from tests.bench.report import begin, end, figures_table, page, scenarios_table
from tests.bench.rounds import Sample, order
from tests.bench.scenarios import SCENARIOS, chosen, models


def fake_process(proc, pid: int, parent: int, threads: dict[int, int], pss: int = 0) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (odd) name) S {parent} 1 1 0")
    (folder / "smaps_rollup").write_text(f"0-0 ---p\nRss: 9000 kB\nPss: {pss} kB\nPss_Anon: 1 kB\n")
    for thread, spent in threads.items():
        (folder / "task" / str(thread)).mkdir(parents=True)
        (folder / "task" / str(thread) / "schedstat").write_text(f"{spent} 77 3\n")


def sample(cpu_s: float = 0.0, redis_s: float = 0.0, **load: object) -> Sample:
    known = (
        "errors",
        "e_status",
        "e_marks",
        "e_done",
        "e_conn",
        "last_status",
        "all_ok",
        "all_chunks",
        "load_cpu",
        "ok",
        "rps",
    )
    times = ("p50_us", "p99_us", "ttft_p50_us", "gap_p99_us", "chunks_s")
    return Sample({**dict.fromkeys((*known, *times), 0), "errbody": "", **load}, cpu_s, redis_s, 2.0)


def test_a_tree_is_a_process_and_its_descendants_whatever_their_names(tmp_path):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (20, 1)):
        fake_process(tmp_path, pid, parent, {pid: 5})
    (tmp_path / "meminfo").write_text("")
    assert tree([10], tmp_path) == {10, 11, 12}
    assert tree([99], tmp_path) == {99}


def test_cpu_is_the_sum_over_threads_and_new_ones_count_whole(tmp_path):
    fake_process(tmp_path, 10, 1, {10: 1_000_000_000, 13: 5})
    before = cpu_times([10], tmp_path)
    assert before == {(10, 10): 1_000_000_000, (10, 13): 5}
    (tmp_path / "10/task/10/schedstat").write_text("1500000000 0 0")
    fake_process(tmp_path, 11, 10, {11: 250_000_000})
    assert cpu_between(before, cpu_times([10], tmp_path)) == pytest.approx(0.75)


def test_pss_is_read_exactly_and_a_process_that_is_gone_is_an_error(tmp_path):
    fake_process(tmp_path, 10, 1, {10: 1}, pss=1234)
    fake_process(tmp_path, 11, 10, {11: 1}, pss=66)
    assert pss_kib([10, 11], tmp_path) == 1300
    with pytest.raises(OSError, match="12"):
        pss_kib([12], tmp_path)


def test_every_other_round_runs_backwards():
    names = ("direct", "nginx", "gateway")
    assert [order(names, number) for number in (0, 1, 2)] == [list(names), list(reversed(names)), list(names)]


def test_scenarios_are_chosen_by_name():
    assert [s.name for s in chosen("st64,ns1")] == ["st64", "ns1"]
    assert len(chosen("all")) == len(SCENARIOS)
    assert {SCENARIOS[n].unit for n in ("st1", "pace256")} == {"chunk"}
    assert {SCENARIOS[n].model for n in SCENARIOS} <= set(models())
    with pytest.raises(ValueError, match="ns2"):
        chosen("ns1,ns2")


def test_a_ratio_is_that_of_the_medians():
    ours = [sample(0.3, all_ok=1000), sample(9.0, all_ok=1000), sample(0.2, all_ok=1000)]
    nginx = [sample(0.02, all_ok=1000), sample(0.03, all_ok=1000), sample(0.04, all_ok=1000)]
    told = {f.name: f for f in speed({"ns64": {"gateway": ours, "nginx": nginx}})}
    figure = told["CPU per request, 64 connections"]
    assert figure.value == pytest.approx(10)
    assert (figure.meets(figure.bar), figure.meets(figure.target)) == (True, False)
    assert told["added latency, p50, 50 requests/s"].value is None


def test_a_stream_costs_by_its_chunks_and_redis_by_requests():
    samples = {
        "st64": {"gateway": [sample(1.0, all_ok=10, all_chunks=50_000)]},
        "ns64": {"gateway": [sample(1.0, 0.05, all_ok=1000)]},
    }
    assert cpu_us(samples, "st64", "gateway") == pytest.approx(20)
    told = {f.name: f.value for f in speed(samples)}
    assert told["Redis CPU per request, 4 rules, 64 connections"] == pytest.approx(50)
    assert told["CPU per request, 64 connections"] is None  # no nginx, no ratio


def test_a_round_without_an_answer_is_no_figure():
    assert cpu_us({"ns1": {"gateway": [sample(1.0, all_ok=10), sample(1.0)]}}, "ns1", "gateway") is None


def test_added_times_are_differences_in_ms():
    samples = {"st1": {"direct": [sample(ttft_p50_us=100)], "gateway": [sample(ttft_p50_us=700)]}}
    told = {f.name: f for f in speed(samples)}
    assert told["added time to first token, p50, 1 stream"].value == pytest.approx(0.6)


def test_verdicts_say_met_missed_or_nothing():
    more = Figure(name="rate", unit="1/s", value=6000, bar=5000, target=9400, better="more")
    line = figures_table([more, Figure(name="idle", unit="MiB", value=3.0)]).splitlines()
    assert line[2] == "| rate | 6,000 1/s | - | ≥ 5,000 | met | ≥ 9,400 | **missed** |"
    assert line[3] == "| idle | 3.00 MiB | - | - | - | - | - |"
    assert Figure(name="none", unit="s", value=None, bar=1).meets(1) is None


def test_wrong_answers_are_told_with_their_cause():
    samples = {"ns1": {"gateway": [sample(errors=2, ok=8, e_status=2, last_status=503, errbody="busy")]}}
    (line,) = errors(samples)
    assert line.startswith("ns1, gateway: 2 of 10") and "503: busy" in line
    assert "| 2 |" in scenarios_table(samples).splitlines()[-1]


def test_only_the_measured_part_of_a_page_is_replaced():
    first = page("# Benchmarks\n\nWords before.\n", "gateway", "one")
    assert first.startswith("# Benchmarks\n\nWords before.\n\n" + begin("gateway"))
    second = page(page(first + "\nWords after.\n", "pool", "other"), "gateway", "two")
    assert "one" not in second and second.index("two") < second.index(end("gateway")) < second.index("Words after.")
    assert second.index("Words after.") < second.index("other")
    assert page(second, "gateway", "two") == second


def test_admissions_are_told_by_rules_and_per_second_of_a_core():
    costs = [Cost(n, 10.0 + n, 8.0, 20.0 + n, Client(25.0, 9000)) for n in (1, 4, 12)]
    told = {f.name: f for f in limits_figures(costs, Client(40.0, 7000), Lookup(3.0, 900.0, 9.0))}
    pair = told["Redis CPU per admit + settle pair, 4 rules"]
    assert (pair.value, pair.meets(pair.bar), pair.meets(pair.target)) == (24.0, True, True)
    assert [told[f"Redis CPU per admission, {n} rule{s}"].value for n, s in ((1, ""), (4, "s"), (12, "s"))] == [11, 14, 22]
    assert told["admissions per second and core of a worker, 4 rules"].value == pytest.approx(40_000)
    assert told["the same without Redis (embedded mode)"].value == pytest.approx(25_000)
    assert told["key lookup, for the first time"].value == 900
    assert costs_table(costs).count("\n") == 4


def test_a_key_is_looked_up_among_many(tmp_path):
    found = lookup(tmp_path, 1_500)
    assert min(found.known_us, found.forged_us, found.stored_us) > 0


def test_the_pool_is_compared_round_by_round_with_the_server_in_the_same_manner():
    rounds = {
        8: {
            "pool": [Round(90, 60), Round(200, 50), Round(110, 55)],
            "server": [Round(100, 50), Round(100, 50), Round(100, 50)],
            "gateway": [Round(80, 40)] * 3,
            "server, streamed": [Round(50, 25)] * 3,
            "gateway, streamed": [Round(45, 25)] * 3,
        }
    }
    assert compared(rounds, 8, "pool") == pytest.approx((1.1, 1.1))
    assert [figure.value for figure in figures(rounds)] == pytest.approx([1.1, 0.8, 0.9])
    assert [figure.meets(figure.bar) for figure in figures(rounds)] == [True, False, True]
    assert "1.10 / 1.10" in rounds_table(rounds)
