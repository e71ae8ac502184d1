"""Builds deploy/Dockerfile for real without Docker: buildah in a chroot, on a base that debootstrap makes and that is
imported under the name that the Dockerfile asks for. It is kept in .build/image with the base and the image: 1 GiB, and some
8 GiB more while it is built. SWITCHYARD_IMAGE_LAYERS=1 keeps every step too, so that a second build is quick: 30 GiB.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".build" / "image"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
TAG = "localhost/switchyard:test"
_PACKAGES = "ca-certificates,python3,python3-venv"
FREE_GB = 10
#: What a build's output holds when a server or the disk, and not the Dockerfile, is why it failed.
_OUT_OF_REACH = re.compile(
    r"No space left on device|Temporary failure (?:in name resolution|resolving)|Name or service not known|Could not resolve"
    r"|Could not connect|Failed to establish a new connection|Connection (?:refused|reset|timed out)|Read ?timed? ?out"
    r"|Network is unreachable|Max retries exceeded|Unable to fetch some archives|Hash Sum mismatch|IncompleteRead"
    r"|CERTIFICATE_VERIFY_FAILED|HTTP (?:Error )?(?:429|5\d\d)|Operation not permitted.*chroot",
    re.IGNORECASE,
)


class OutOfReach(Exception):
    """The image cannot be built here, for a reason that is not the Dockerfile's; the text is the reason."""


def missing() -> str | None:
    """Why no image can be built here, else None."""
    if os.geteuid() != 0:
        return "buildah with --isolation chroot and debootstrap need root"
    lacking = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    return f"missing: apt-get install {' '.join(lacking)}" if lacking else None


def no_room() -> str | None:
    """Why the disk does not hold a build, else None."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    return f"a build takes {FREE_GB} GB of disk, {free_gb:.1f} GB are free" if free_gb < FREE_GB else None


def buildah(*words: str | Path, timeout_s: float = 120.0) -> str:
    """Run buildah on the storage kept here; returns what it says.

    Raises:
        AssertionError: it failed; the text has the end of its output.
    """
    found = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert found.returncode == 0, f"buildah {words[0]}: {found.stdout[-3000:]}\n{found.stderr[-3000:]}"
    return found.stdout.strip()


def command(*words: str | Path) -> list[str]:
    """A command line of buildah."""
    storage = ["--root", str(KEPT / "storage"), "--runroot", str(KEPT / "run"), "--storage-driver", "vfs"]
    return ["buildah", *storage, *map(str, words)]


def base_name() -> str:
    """The image that the Dockerfile is built on."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    assert found, "deploy/Dockerfile: no PYTHON_IMAGE"
    return found[1]


def import_base() -> None:
    """A stand-in for the official image: the same Debian, its own Python 3.11."""
    name = f"docker.io/library/{base_name()}"
    if name in buildah("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return
    folder, archive = KEPT / "rootfs", KEPT / "rootfs.tar"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(folder)]
    made = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    if made.returncode != 0:
        raise OutOfReach(f"debootstrap: {_end(made.stdout + made.stderr)}")
    for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(folder / cache)
        (folder / cache / "partial").mkdir(parents=True)
    subprocess.run(["tar", "-C", str(folder), "-cf", str(archive), "."], check=True, timeout=300)
    container = buildah("from", "scratch")
    buildah("add", "-q", container, archive, "/", timeout_s=300)
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "-q", container, name, timeout_s=600)
    buildah("rm", container)
    shutil.rmtree(folder)
    archive.unlink()


def build() -> None:
    """Build the whole Dockerfile. On a machine with authorities of its own (a proxy's) pip is told of them.

    Raises:
        OutOfReach: it cannot be built here.
        AssertionError: the Dockerfile, or what it copies, is wrong.
    """
    if (reason := no_room()) is not None:
        raise OutOfReach(reason)
    KEPT.mkdir(parents=True, exist_ok=True)
    import_base()
    try:
        _probe()
    except AssertionError as error:
        raise OutOfReach(f"nothing runs in a container here: {_end(str(error))}") from None
    mounts: list[str] = []
    if BUNDLE.is_file():
        settings = KEPT / "pip.conf"
        settings.write_text(f"[global]\ncert = {BUNDLE}\n")
        mounts = ["-v", f"{BUNDLE}:{BUNDLE}:ro", "-v", f"{settings}:/etc/pip.conf:ro"]
    options = ["--isolation", "chroot", "--pull-never", "--network", "host", "--format", "docker"]
    if os.environ.get("SWITCHYARD_IMAGE_LAYERS") == "1":
        options.append("--layers")
    try:
        buildah("bud", *options, *mounts, "-f", "deploy/Dockerfile", "-t", TAG, ".", timeout_s=3000)
    except AssertionError as error:
        if found := _OUT_OF_REACH.search(str(error)):
            raise OutOfReach(f"{found[0]}: {_end(str(error))}") from None
        raise


def _probe() -> None:
    """Run something on the base, which a machine without the right to chroot does not allow."""
    container = buildah("from", "--pull-never", base_name(), timeout_s=300)
    try:
        buildah("run", "--isolation", "chroot", container, "--", "true")
    finally:
        buildah("rm", container, timeout_s=300)


def _end(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-4:])[-600:]
