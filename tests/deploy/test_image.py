"""The image, built and run: its user, its size, what it was compiled for, and the smoke test of a whole gateway in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.deploy import image
from tests.servers import PostgresServer, RedisServer, free_port, postgres_missing

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(image.missing() is not None, reason=str(image.missing())),
]
#: MiB of the image without its base: environment, models, nothing of the tools. The measured size is in docs/install.md.
MAX_OWN_MIB = 400
USER = 10001
PYTHON = "/opt/switchyard/bin/python"


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    try:
        image.build()
    except image.OutOfReach as reason:
        pytest.fail(f"no image can be built here: {reason}")
    name = image.buildah("from", "--pull-never", image.TAG, timeout_s=300)
    # buildah mounts a declared volume and what a test mounts there in either order, so the latter may lie beneath.
    assert "/srv/var" in image.buildah("inspect", "--format", "{{.OCIv1.Config.Volumes}}", name)
    image.buildah("config", "--volume", "/srv/var-", name)
    yield name
    image.buildah("rm", name, timeout_s=300)


@pytest.fixture(scope="module")
def rootfs(container: str) -> Path:
    return Path(image.buildah("mount", container))


def run(container: str, *words: str, options: tuple[str, ...] = ()) -> str:
    return image.buildah("run", "--isolation", "chroot", *options, container, "--", *words)


def owned(path: Path) -> Path:
    """A folder for the container's user alone, as the volumes and compose.yaml's tmpfs are."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    shutil.chown(path, USER, USER)
    return path


@contextmanager
def serving(container: str, folder: Path, options: list[str], words: list[str]) -> Iterator[tuple[str, Path]]:
    """`switchyard serve` in the container, on this machine's network (a chroot has no other); its address and log."""
    port, metrics = free_port(), free_port()
    env = [f"SWITCHYARD_SERVER__LISTEN=127.0.0.1:{port}", f"SWITCHYARD_TELEMETRY__METRICS__LISTEN=127.0.0.1:{metrics}"]
    settings = [part for one in env for part in ("--env", one)]
    log = folder / "gateway.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            image.command("run", "--isolation", "chroot", *settings, *options, container, "--", "switchyard", *words),
            cwd=image.ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while status(url + "/health/ready") != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url, log
        supervisors(process)[0].send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        for one in supervisors(process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait(30)


def supervisors(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The gateway's first process among what buildah started, which runs its command as `buildah-chroot-exec COMMAND`."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        return [one for one in below if one.cmdline()[:1] == [PYTHON]][:1]
    return []


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def ask(url: str, key: str, path: str, **body: object) -> dict[str, object]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.loads(answer.read())
    assert isinstance(found, dict)
    return found


def chat(url: str, key: str) -> str:
    messages = [{"role": "user", "content": "Say hello in one sentence."}]
    found = ask(url, key, "/v1/chat/completions", model="chat", messages=messages, max_tokens=8, temperature=0)
    return str(found["choices"][0]["message"]["content"])  # type: ignore[index]


def test_it_runs_as_its_own_user_and_knows_its_version(container: str) -> None:
    assert run(container, "id", "-u") == str(USER)
    assert re.fullmatch(r"switchyard \d+\.\d+\.\d+", run(container, "switchyard", "version"))


def test_no_tool_of_the_build_is_in_it(rootfs: Path) -> None:
    names = {path.name for folder in ("usr/bin", "usr/local/bin", "opt/switchyard/bin") for path in (rootfs / folder).iterdir()}
    assert not names & {"gcc", "g++", "cmake", "ninja", "make"}
    assert not list((rootfs / "opt/switchyard").rglob("pip"))
    own = subprocess.run(["du", "-sm", "opt", "srv"], cwd=rootfs, capture_output=True, text=True, check=True).stdout
    mib = sum(int(line.split()[0]) for line in own.splitlines())
    print(f"own {mib} MiB")
    assert mib <= MAX_OWN_MIB


def test_llama_is_compiled_for_avx2_and_no_more(rootfs: Path) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("objdump (apt: binutils) is not installed")
    library = next((rootfs / "opt/switchyard").rglob("libggml-cpu.so.0.*"))
    code = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "%ymm" in code
    assert "%zmm" not in code


def test_the_embedded_default_serves_both_models(container: str, rootfs: Path, tmp_path: Path) -> None:
    state, runs = owned(tmp_path / "var"), owned(tmp_path / "run")
    (rootfs / "marker").touch()
    options = ["-v", f"{state}:/srv/var", "-v", f"{runs}:/run/switchyard"]
    with serving(container, tmp_path, options, ["serve"]) as (url, log):
        key = re.search(r"user key +(\S+)", log.read_text())
        assert key
        assert chat(url, key[1])
        vector = ask(url, key[1], "/v1/embeddings", model="embed", input="hello")["data"][0]["embedding"]  # type: ignore[index]
        assert len(vector) == 384
        assert status(url + "/v1/models") == 401
        script = ("python", "-I", "/usr/local/lib/healthcheck.py", url + "/health/ready")
        run(container, *script)
    with pytest.raises(AssertionError):
        run(container, *script)
    assert (state / "gateway.db").exists()
    # It would do the same on a read-only file system: all that is new lies in its volumes.
    newer = ["find", ".", "-xdev", "-newer", "marker", "-type", "f"]
    left_out = [part for path in ("./srv/var", "./run", "./tmp", "./proc", "./sys", "./dev", "./etc") for part in
                ("-not", "-path", f"{path}/*")]  # fmt: skip
    written = subprocess.run([*newer, *left_out], cwd=rootfs, capture_output=True, text=True, check=True).stdout
    assert written == ""


def test_the_gateway_of_compose_serves(container: str, tmp_path: Path) -> None:
    """Its configuration, its secrets as make-secrets leaves them, two workers, a real Redis and a real PostgreSQL."""
    if lacking := postgres_missing():
        pytest.skip(lacking)
    secrets = {name: owned(tmp_path / "secrets" / name) for name in ("gateway", "redis", "postgres", "grafana")}
    mounts = tuple(part for name, path in secrets.items() for part in ("-v", f"{path}:/secrets/{name}"))
    run(container, "/usr/local/bin/make-secrets", options=mounts)
    password = (secrets["redis"] / "password").read_text()
    redis, postgres = RedisServer(tmp_path / "redis").start("--requirepass", password), PostgresServer().start()
    try:
        urls = {
            "redis_url": f"redis://:{password}@127.0.0.1:{redis.port}/0",
            "ledger_url": f"postgresql+asyncpg://switchyard@127.0.0.1:{postgres.port}/postgres",
        }
        for name, text in urls.items():
            (secrets["gateway"] / name).unlink()
            (secrets["gateway"] / name).write_text(text)
            shutil.chown(secrets["gateway"] / name, USER, USER)
        env = {
            "SERVER__WORKERS": "2",
            "STATE_DIR": "/srv/var",
            "REDIS__URL": "file:/secrets/gateway/redis_url",
            "LEDGER__URL": "file:/secrets/gateway/ledger_url",
            "AUTH__PEPPER": "file:/secrets/gateway/pepper",
        }
        options = [part for name, text in env.items() for part in ("--env", f"SWITCHYARD_{name}={text}")]
        options += ["-v", f"{image.ROOT / 'deploy/config'}:/etc/switchyard:ro", "-v", f"{owned(tmp_path / 'var')}:/srv/var"]
        options += ["-v", f"{owned(tmp_path / 'run')}:/run/switchyard", *mounts]
        words = ["keys", "new", "--config", "/etc/switchyard/config.yaml", "--name", "smoke", "--json"]
        with serving(container, tmp_path, options, ["serve", "--config", "/etc/switchyard/config.yaml"]) as (url, _):
            key = json.loads(run(container, "switchyard", *words, options=tuple(options)))["secret"]
            assert chat(url, key)
        with psycopg.connect(f"host=127.0.0.1 port={postgres.port} user=switchyard dbname=postgres") as connection:
            assert connection.execute("SELECT model, outcome, status FROM ledger").fetchall() == [("chat", "ok", 200)]
    finally:
        redis.kill()
        postgres.remove()
        os.sync()
