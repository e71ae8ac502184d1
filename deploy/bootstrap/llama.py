"""llama.cpp for llama-cpp-python: the library alone, compiled beside the downloads, or the one that the user brings.

The whole llama-cpp-python wheel builds tools, server and tests too and takes three times as long. Here libllama is
compiled alone, the wheel is built without it (`-DLLAMA_BUILD=OFF`, seconds), and the libraries are laid into the
installed package's `lib` folder, where it looks first: no variable is needed at run time.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from deploy.bootstrap.places import Places
from deploy.bootstrap.steps import Stamps, StepFailed, Steps

#: What is left out of llama.cpp, and libraries that find each other wherever they lie.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TOOLS", "SERVER", "TESTS", "EXAMPLES", "APP")),
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)
_UNUSED = ("benches", "docs", "examples", "media", "models", "tests", "tools")
APT = "apt-get install -y gcc g++"


def brought() -> Path | None:
    """What the user brings: a wheel, or a folder with libllama; None = nothing.

    Raises:
        StepFailed: it is neither.
    """
    text = os.environ.get("SWITCHYARD_LLAMA_CPP") or os.environ.get("LLAMA_CPP_LIB_PATH")
    if not text:
        return None
    path = Path(text).expanduser().resolve()
    if path.suffix == ".whl" and path.is_file():
        return path
    if any(path.glob("libllama.*")):
        return path
    raise StepFailed(f"{path} is neither a llama-cpp-python wheel nor a folder with libllama.so in it")


def compiler_missing() -> str | None:
    """What to install when there is no C or C++ compiler; None when both are there."""
    c = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    cpp = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if all(any(name and shutil.which(shlex.split(name)[0]) for name in names) for names in (c, cpp)):
        return None
    return f"llama.cpp needs a C and a C++ compiler: {APT}"


def inputs(version: str, had: str | None) -> str:
    """What a compiled library depends on: version, processor, and the options that the user gave.

    Without `CMAKE_ARGS` a library that was built with some is kept (`had`): a CUDA build is not replaced by the next
    plain `make run`.
    """
    head = f"{version} {_processor()} "
    options = os.environ.get("CMAKE_ARGS", "")
    if not options and had is not None and had.startswith(head):
        return had
    return head + options


def compile_library(steps: Steps, places: Places, source: Path) -> Path:
    """Compile libllama; goes on where an interrupted compile stopped. Returns the folder of the libraries.

    Raises:
        StepFailed: no compiler, or the compile failed.
    """
    if missing := compiler_missing():
        raise StepFailed(missing)
    options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    mark = hashlib.sha256(repr((source.name, _processor(), options)).encode()).hexdigest()[:12]
    build = places.build / f"llama-{mark}"
    cmake = places.tool("cmake")
    with steps.step("compiling llama.cpp, the library alone (the longest step)"):
        make = f"-DCMAKE_MAKE_PROGRAM={places.tool('ninja')}"
        command: list[str | Path] = [
            cmake,
            "-S",
            source / "vendor/llama.cpp",
            "-B",
            build,
            "-G",
            "Ninja",
            make,
            *_OPTIONS,
            *options,
        ]
        steps.run("llama-configure", command)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 2)
        steps.run("llama-compile", [cmake, "--build", build, "--target", "llama", "-j", jobs])
    return build / "bin"


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack what the library needs of the source package, whole or not at all; returns its one folder."""
    target = folder / sdist.name.removesuffix(".tar.gz")
    if not target.exists():
        draft = folder / f".{target.name}"
        shutil.rmtree(draft, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(draft, members=_needed(archive, target.name))
        (draft / target.name).rename(target)
        shutil.rmtree(draft)
    return target


def _needed(archive: tarfile.TarFile, top: str) -> Iterator[tarfile.TarInfo]:
    """Without llama.cpp's documents, sample models and programs: four fifths of the bytes.

    `filter="data"` would check the members, but Debian 12's Python 3.11.2 does not know it yet.

    Raises:
        StepFailed: a member that is neither a file nor a folder below `top`.
    """
    left_out = tuple(f"{top}/vendor/llama.cpp/{one}/" for one in _UNUSED)
    for member in archive:
        if member.issym() or member.islnk() or member.name.startswith(left_out):
            continue
        inside = member.name.split("/")[0] == top and ".." not in member.name.split("/")
        if not inside or not (member.isfile() or member.isdir()):
            raise StepFailed(f"the source package holds {member.name!r}, which does not belong there")
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        yield member


def place_libraries(libraries: Path, package: Path) -> None:
    """Lay the libraries into the installed package, names that are links included."""
    target = package / "lib"
    draft = package / ".lib"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for one in libraries.iterdir():
        if ".so" in one.name or one.suffix == ".dylib":
            shutil.copy2(one, draft / one.name, follow_symlinks=False)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def installed(steps: Steps, places: Places) -> bool:
    """Whether llama_cpp works in the environment, from whatever build."""
    try:
        steps.run("llama-check", [places.python, "-c", "import llama_cpp; llama_cpp.llama_backend_init()"])
    except StepFailed:
        return False
    return True


def forget_if_gone(stamps: Stamps, places: Places) -> None:
    """A recreated environment has no llama_cpp, whatever the stamp says."""
    if not any(places.package("llama_cpp").glob("lib/libllama.*")):
        stamps.forget("llama")


def _processor() -> str:
    """The processor's abilities: the compile uses them all, so that a copy on another machine must compile anew."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "any"
    lines = {
        line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(("flags", "Features", "model name"))
    }
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]
