"""The supervisor's process tree with toy roles: real forks, real sockets, real kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


class Tree:
    """One toy gateway."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(mode=0o700)
        self.journal = folder / "journal"
        self.port, self.metrics_port = free_port(), free_port()
        self.settings = {
            "port": self.port, "workers": 2, "journal": str(self.journal), "run_dir": str(self.run_dir),
            "metrics": self.metrics_port, "slots": 3, "drain": {"drain_s": 5.0, "cut_s": 1.0}, **settings,
        }  # fmt: skip
        file = folder / "settings.json"
        file.write_text(json.dumps(self.settings))
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.toy_gateway", str(file)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        self.ps = psutil.Process(self.process.pid)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            time.sleep(0.02)
        raise AssertionError(f"{what}\n{self.log.read_text()[-3000:]}")

    def started(self) -> Tree:
        self.until(lambda: self.events("ready"), "never ready")
        return self

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def pid(self, role: str) -> int:
        started = [e for e in self.events("process_started") if e["role"] == role]
        return int(started[-1]["child"])  # type: ignore[call-overload]

    def metric(self, name: str) -> float:
        _, text = self.get("/metrics", self.metrics_port)
        found = [s.value for m in text_string_to_metric_families(text) for s in m.samples if s.name == name]
        return sum(found)

    def all_pids(self) -> list[int]:
        return [self.process.pid, *(p.pid for p in self.ps.children(recursive=True))]

    def end(self) -> None:
        pids = []
        with contextlib.suppress(psutil.NoSuchProcess):
            pids = self.all_pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(5)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[..., Tree]]:
    made: list[Tree] = []

    def make(**settings: object) -> Tree:
        folder = tmp_path / f"tree{len(made)}"
        folder.mkdir()
        made.append(Tree(folder, **settings))
        return made[-1]

    yield make
    for each in made:
        each.end()


def answering(t: Tree, tries: int = 60) -> set[str]:
    return {t.get("/who")[1] for _ in range(tries)}


def test_four_workers_share_a_port_and_a_killed_one_comes_back(tree: Callable[..., Tree]) -> None:
    t = tree(workers=4).started()
    before = answering(t)
    assert len(before) >= 3
    victim = t.pid("worker-1")
    os.kill(victim, signal.SIGKILL)
    failures = 0
    for _ in range(40):
        try:
            assert t.get("/who")[0] == 200
        except (ConnectionError, http.client.HTTPException):
            failures += 1
    assert failures <= 2, "the others must serve"
    t.until(lambda: t.pid("worker-1") != victim, "not restarted")
    t.until(lambda: any(f"1 {t.pid('worker-1')}" == who for who in answering(t, 20)), "the new one never answers")
    died = t.events("process_died")
    assert [(e["role"], e["status"]) for e in died] == [("worker-1", -9)]


def test_a_second_gateway_on_the_port_says_so(tree: Callable[..., Tree]) -> None:
    t = tree().started()
    other = tree(port=t.port)
    assert other.process.wait(10) == 1
    (event,) = other.events("port_taken")
    assert f"127.0.0.1:{t.port}" in str(event["error"])
    assert "in use" in str(event["error"])
    assert t.get("/who")[0] == 200


def test_kill_nine_of_the_supervisor_takes_everything_with_it(tree: Callable[..., Tree], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    t = tree(workers=2, gate=True, engine={"run": str(tmp_path)}).started()
    t.until((tmp_path / "e.sock").exists, "no engine")
    threading.Thread(target=stream, args=(t, "/stream?n=200&gap=0.05"), daemon=True).start()
    pids = t.all_pids()
    assert len(pids) == 5
    began = time.monotonic()
    os.kill(t.process.pid, signal.SIGKILL)
    t.process.wait(2)
    while any(alive(pid) for pid in pids):
        assert time.monotonic() - began < 2.0, [psutil.Process(p).cmdline() for p in pids if alive(p)]
        time.sleep(0.02)


def stream(t: Tree, path: str) -> str:
    try:
        return t.get(path)[1]
    except (OSError, http.client.HTTPException) as error:
        return f"lost: {error!r}"


def test_sigterm_lets_an_open_stream_end_and_refuses_new_ones(tree: Callable[..., Tree]) -> None:
    t = tree(drain={"delay_s": 0.5, "drain_s": 8.0, "cut_s": 1.0}).started()
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(stream(t, "/stream?n=20&gap=0.1")))
    reader.start()
    time.sleep(0.3)
    began = time.monotonic()
    t.process.send_signal(signal.SIGTERM)
    t.until(lambda: t.get("/ready")[0] == 503, "still ready", 1.0)
    t.until(lambda: refused(t), "still listening", 2.0)
    reader.join(10)
    assert got[0].endswith("19\nend\n")
    assert t.process.wait(5) == 0
    assert 1.0 < time.monotonic() - began < 5.0
    assert t.journal.read_text().count("flushed") == 2


def refused(t: Tree) -> bool:
    try:
        t.get("/who")
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("how", ["drain time", "second signal"])
def test_a_stream_that_does_not_end_is_cut(tree: Callable[..., Tree], how: str) -> None:
    t = tree(drain={"drain_s": 0.5 if how == "drain time" else 30.0, "cut_s": 2.0}).started()
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(stream(t, "/stream?n=1000&gap=0.05")))
    reader.start()
    time.sleep(0.3)
    t.process.send_signal(signal.SIGTERM)
    if how == "second signal":
        time.sleep(0.3)
        t.process.send_signal(signal.SIGINT)
    assert t.process.wait(5) == 0
    reader.join(5)
    assert got[0].endswith("cut\n")


def test_a_changed_file_reaches_every_worker_and_a_broken_one_changes_nothing(
    tree: Callable[..., Tree], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("one")
    t = tree(file=str(file), gate=True).started()

    def everyone_has(config: str, refused: str) -> bool:
        return {t.get("/config")[1] for _ in range(12)} == {json.dumps([config, refused])}

    big = "two" + "x" * 300_000
    file.write_text(big)
    t.until(lambda: everyone_has(big, ""), "not reloaded")
    file.write_text("broken")
    t.until(lambda: everyone_has(big, "models.chat: broken"), "not told")
    (event,) = t.events("config_reload_failed")
    assert event["error"] == "models.chat: broken"
    t.until(lambda: t.metric("switchyard_config_reload_failed") == 1, "not in the metric")
    victim = t.pid("worker-0")
    os.kill(victim, signal.SIGKILL)
    t.until(lambda: t.pid("worker-0") != victim and everyone_has(big, "models.chat: broken"), "a new worker has the old start")
    file.write_text("three")
    t.process.send_signal(signal.SIGHUP)
    t.until(lambda: everyone_has("three", ""), "not mended")
    t.until(lambda: t.metric("switchyard_config_reload_failed") == 0, "not mended in the metric")


def test_an_engine_host_that_crashes_is_started_again_and_again_more_slowly(tree: Callable[..., Tree], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    t = tree(workers=1, engine={"run": str(tmp_path), "load_error": "the script says: no"}).started()
    t.until(lambda: len(t.events("engine_crashed")) >= 3, "not restarted")
    crashes = t.events("engine_crashed")[:3]
    assert [round(float(e["again_in_s"]), 1) for e in crashes] == [0.2, 0.4, 0.8]  # type: ignore[arg-type]
    assert {(e["code"], e["reason"]) for e in crashes} == {("load_failed", "the script says: no")}
    assert t.get("/who")[0] == 200


def test_a_role_that_no_restart_can_mend_ends_the_gateway(tree: Callable[..., Tree]) -> None:
    t = tree().started()
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        t.get("/fatal")
    assert t.process.wait(10) == 78


def hold(t: Tree, count: int, hold_s: float) -> tuple[list[threading.Thread], list[str]]:
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: got.append(stream(t, f"/slot?hold={hold_s}&key=k{n % 4}")), daemon=True)
        for n in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads, got


def worst(t: Tree, dead: dict[int, float]) -> int:
    """The most slots ever held at once, from the workers' journal; a killed worker's end with it."""
    marks: list[tuple[float, int]] = []
    open_by_pid: dict[int, int] = {}
    for line in t.journal.read_text().splitlines():
        sign, _, rest = line.partition(" ")
        if sign not in "+-":
            continue
        pid, at = rest.split()
        step = 1 if sign == "+" else -1
        marks.append((float(at), step))
        open_by_pid[int(pid)] = open_by_pid.get(int(pid), 0) + step
    for pid, at in dead.items():
        marks += [(at, -1)] * open_by_pid.get(pid, 0)
    most = running = 0
    for _, step in sorted(marks):
        running += step
        most = max(most, running)
    return most


def test_the_bound_holds_over_four_workers_through_kills_of_a_worker_and_of_the_gate(tree: Callable[..., Tree]) -> None:
    t = tree(workers=4, gate=True, slots=3).started()
    threads, got = hold(t, 24, 0.6)  # longer than the gate's restart takes
    t.until(lambda: t.journal.exists() and t.journal.read_text().count("+") >= 3, "no slots")
    gate = t.pid("gate")
    os.kill(gate, signal.SIGKILL)
    t.until(lambda: t.pid("gate") != gate and t.journal.read_text().count("+") >= 9, "no slots after the gate's restart")
    holders = [int(line.split()[1]) for line in t.journal.read_text().splitlines() if line.startswith("+")]
    victim = holders[-1]
    dead = {victim: time.monotonic()}
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert worst(t, dead) == 3
    assert got.count("done") >= 12
    t.until(lambda: t.metric("switchyard_slots_in_use") == 0, "slots leaked")
    again, answers = hold(t, 6, 0.01)
    for thread in again:
        thread.join(10)
    assert answers == ["done"] * 6


def test_a_scrape_sums_over_workers_and_keeps_the_dead_ones(tree: Callable[..., Tree]) -> None:
    t = tree(workers=4, gate=True).started()
    t.until(lambda: t.metric("switchyard_workers") == 4, "not all workers answer")
    for _ in range(40):
        t.get("/who")
    assert t.metric("switchyard_fallbacks_total") == 40
    victim = t.pid("worker-2")
    os.kill(victim, signal.SIGKILL)
    t.until(lambda: t.pid("worker-2") != victim, "not restarted")
    t.until(lambda: t.metric("switchyard_workers") == 4, "not back")
    assert t.metric("switchyard_fallbacks_total") == 40
    for _ in range(10):
        t.get("/who")
    assert t.metric("switchyard_fallbacks_total") == 50
    assert t.get("/other", t.metrics_port)[0] == 404


def test_a_stopped_worker_delays_a_scrape_by_a_second_and_keeps_its_place_in_the_sum(tree: Callable[..., Tree]) -> None:
    t = tree(workers=2, gate=True).started()
    t.until(lambda: t.metric("switchyard_workers") == 2, "not all workers answer")
    for _ in range(20):
        t.get("/who")
    assert t.metric("switchyard_fallbacks_total") == 20
    os.kill(t.pid("worker-0"), signal.SIGSTOP)
    began = time.monotonic()
    assert t.metric("switchyard_fallbacks_total") == 20
    assert time.monotonic() - began < 3.0
    assert t.metric("switchyard_workers") == 1
    os.kill(t.pid("worker-0"), signal.SIGCONT)
    t.until(lambda: t.metric("switchyard_workers") == 2, "not back")
