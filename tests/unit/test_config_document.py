import pytest

from gateway.config.document import MAX_BYTES, read_document
from gateway.config.problems import ConfigError


def refused(data: bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_document(data, "c.yaml")
    return caught.value


def test_values_and_lines() -> None:
    document = read_document(b"server:\n  workers: 2\nmodels:\n  chat:\n    tiers:\n      - [a]\n      - [b]\n", "c.yaml")
    assert document.tree == {"server": {"workers": 2}, "models": {"chat": {"tiers": [["a"], ["b"]]}}}
    assert document.line(("server", "workers")) == 2
    assert document.line(("models", "chat", "tiers", 1)) == 7
    assert document.line(("models", "chat", "absent", "deeper")) == 4
    assert document.line(("nowhere",)) == 0


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert read_document(b"# nothing\n", "c.yaml").tree == {}


def test_anchors_and_merge_keys_work() -> None:
    data = b"a: &one {x: 1}\nb: {<<: *one, y: 2}\n"
    assert read_document(data, "c.yaml").tree == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_a_duplicate_key_is_refused_with_its_line() -> None:
    (problem,) = refused(b"server:\n  workers: 1\n  workers: 4\n").problems
    assert (problem.key, problem.line) == ("server.workers", 3)


def test_every_duplicate_is_reported() -> None:
    assert len(refused(b"a: 1\na: 2\nb: 1\nb: 2\n").problems) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"a: !!python/object/apply:os.system ['true']\n",
        b"a: !!python/name:os.system\n",
        b"a: !mine 3\n",
        b"a: [1, 2\n",
        b"- a\n- b\n",
        b"a: 1\n---\nb: 2\n",
        b"1: a\n",
        b"true: a\n",
        b"[a]: b\n",
        b"a: \xff\n",
        b"a: \x07\n",
        b"&a a: *b\n",
        b"a: &x [*x]\n",
        b"a: 2026-99-99\n",
        b"just text",
    ],
)
def test_what_is_refused(data: bytes) -> None:
    assert refused(data).problems[0].mend


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "aliases" in str(refused("\n".join(lines).encode()))


def test_size_and_depth_are_bounded() -> None:
    assert "bytes" in str(refused(b"#" * (MAX_BYTES + 1)))
    assert "deep" in str(refused(b"a: " + b"[" * 50 + b"]" * 50))
    assert "deep" in str(refused(b"a: " + b"[" * 100_000))
