"""A pattern's tree as GBNF, as it stands or inside a JSON string, and what lengths its texts have. Pure.

Inside a JSON string quotes, backslashes and control characters are escapes: that is why leaves are sets of code points.
"""

from __future__ import annotations

from backends.engines.llamacpp.forms.patterns import (
    LAST,
    MAX_TIMES,
    Anchor,
    Chars,
    Either,
    Node,
    PatternError,
    Ranges,
    Run,
    Times,
    united,
)

#: What JSON has a short escape for, as GBNF spells what follows the backslash.
_ESCAPED = {0x22: r"\"", 0x5C: r"\\", 0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r"}


def lengths(node: Node) -> tuple[int, int | None]:
    """How many characters at least and at most."""
    match node:
        case Chars():
            return 1, 1
        case Times(part=part, least=least, most=most):
            low, high = lengths(part)
            return low * least, None if most is None or high is None else high * most
        case Run(parts=parts):
            found = [lengths(part) for part in parts]
            highs = [high for _, high in found]
            return sum(low for low, _ in found), None if None in highs else sum(high or 0 for high in highs)
        case Either(parts=parts):
            found = [lengths(part) for part in parts]
            highs = [high for _, high in found]
            return min(low for low, _ in found), None if None in highs else max(high or 0 for high in highs)
        case Anchor():
            return 0, 0


def within(node: Node, least: int, most: int | None) -> Node | None:
    """The texts of the tree that have between so many characters; None where that cannot be said."""
    low, high = lengths(node)
    if low >= least and (most is None or (high is not None and high <= most)):
        return node
    parts = node.parts if isinstance(node, Run) else (node,)
    loose = [place for place, part in enumerate(parts) if isinstance(part, Times) and isinstance(part.part, Chars)]
    rest = [part for place, part in enumerate(parts) if place not in loose]
    if len(loose) != 1 or any(one[0] != one[1] for one in map(lengths, rest)):
        return None
    fixed = sum(lengths(part)[0] for part in rest)
    one = parts[loose[0]]
    assert isinstance(one, Times), "it was chosen so"
    low = max(one.least, least - fixed)
    ceiling = [bound for bound in (one.most, None if most is None else most - fixed) if bound is not None]
    if ceiling and (min(ceiling) < low or min(ceiling) > MAX_TIMES):
        return None
    bounded = Times(one.part, low, min(ceiling) if ceiling else None)
    return Run((*parts[: loose[0]], bounded, *parts[loose[0] + 1 :]))


def gbnf(node: Node, *, in_json: bool) -> str:
    """The tree in GBNF; with `in_json` as it stands between the quotes of a JSON string.

    Raises:
        PatternError: says what cannot be said.
    """
    match node:
        case Chars(ranges=ranges):
            return _json_chars(ranges) if in_json else _class_of(_sane(ranges))
        case Run(parts=parts):
            return " ".join(gbnf(part, in_json=in_json) for part in parts) or '""'
        case Either(parts=parts):
            return "(" + " | ".join(gbnf(part, in_json=in_json) for part in parts) + ")"
        case Times(part=part, least=least, most=most):
            part = _never_empty(part, most)
            inner = gbnf(part, in_json=in_json)
            return f"({inner}){times(least, most)}"
        case Anchor():
            raise PatternError("'^' or '$' inside of it")


def times(least: int, most: int | None) -> str:
    """How GBNF says how often."""
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return signs.get((least, most)) or (f"{{{least},}}" if most is None else f"{{{least},{most}}}")


def _never_empty(part: Node, most: int | None) -> Node:
    """llama.cpp refuses what is repeated without end and may be nothing: `(a*)*` is `(a)*`."""
    if most is not None or lengths(part)[0]:
        return part
    if isinstance(part, Times):
        return _never_empty(part.part, most)
    if isinstance(part, Run) and len(part.parts) == 1:
        return _never_empty(part.parts[0], most)
    raise PatternError("a repetition of what may be empty")


def _sane(ranges: Ranges) -> Ranges:
    """Without NUL, which ends a grammar, and without surrogates, which are no characters."""
    kept = [(max(low, 1), min(high, 0xD7FF)) for low, high in ranges] + [(max(low, 0xE000), high) for low, high in ranges]
    found = united([(low, high) for low, high in kept if low <= high])
    if not found:
        raise PatternError("a set of no characters")
    return found


def _json_chars(ranges: Ranges) -> str:
    """Characters as JSON spells them: in their shortest form only."""

    def has(code: int) -> bool:
        return any(low <= code <= high for low, high in ranges)

    plain = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, LAST)]
    direct = united([(max(a, c), min(b, d)) for a, b in ranges for c, d in plain if max(a, c) <= min(b, d)])
    ways = [_class_of(direct)] if direct else []
    ways += [rf'"\\{spelled}"' for code, spelled in _ESCAPED.items() if has(code)]
    if not ways:
        raise PatternError("a set of no characters that JSON spells shortly")
    return ways[0] if len(ways) == 1 else "(" + " | ".join(ways) + ")"


def _class_of(ranges: Ranges) -> str:
    return "[" + "".join(_code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in ranges) + "]"


def _code(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
