"""Which versions of an engine's library it was written for; any other is refused at its start."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence

import msgspec

from backends.engines.options import EngineLoadFailed


class Supported(msgspec.Struct, frozen=True):
    """Versions from `least` to below `below`, both as numbers; `names` are the distributions that bring the library."""

    library: str
    names: tuple[str, ...]
    least: tuple[int, ...]
    below: tuple[int, ...]
    extra: str

    def text(self) -> str:
        """The range in words."""
        return f">={'.'.join(map(str, self.least))},<{'.'.join(map(str, self.below))}"

    def problem(self, version: str) -> str | None:
        """What is wrong with this version, and the mend; None when it is supported."""
        if self.least <= numbers(version) < self.below:
            return None
        mend = f"pip install 'switchyard[{self.extra}]', or {self.library}{self.text()}, into the engine's environment"
        return f"{self.library} {version} is not supported, this engine needs {self.text()}: {mend}"


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 5.19.0.dev0+cpu gives (5, 19, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def installed(names: Sequence[str]) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check(supported: Supported) -> str:
    """The installed version.

    Raises:
        EngineLoadFailed: none is installed, or one that this engine was not written for.
    """
    version = installed(supported.names)
    if version is None:
        raise EngineLoadFailed(
            f"{supported.library} is not installed: pip install 'switchyard[{supported.extra}]', or write"
            " engines.<name>.python: the interpreter of an environment that has it"
        )
    if problem := supported.problem(version):
        raise EngineLoadFailed(problem)
    return version
