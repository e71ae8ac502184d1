import pytest

from gateway.domain.settlement import Rule
from gateway.limits.commands import Closing
from gateway.limits.spool import Spool, adopt

RULES = (Rule("k:tokens:60000", "rate", "tokens", 9, 60_000, 1),)


def closing(n, size=10):
    return Closing(f"id-{n}", 5, 6, RULES, (n,), b"r" * size, "w0", n)


def test_what_is_appended_is_read_by_a_later_process_in_order(tmp_path):
    spool = Spool(tmp_path / "s")
    assert all(spool.append(closing(n)) for n in range(5))
    spool.close()
    later = Spool(tmp_path / "s")
    first, position = later.peek(3)
    assert first == [closing(0), closing(1), closing(2)]
    later.take(position)
    rest, position = later.peek(3)
    assert rest == [closing(3), closing(4)]
    assert later.waiting
    later.take(position)
    assert not later.waiting
    assert (tmp_path / "s").stat().st_size == later.size == 0
    later.close()


def test_what_was_taken_in_part_is_read_again_after_a_crash(tmp_path):
    spool = Spool(tmp_path / "s")
    for n in range(3):
        spool.append(closing(n))
    spool.take(spool.peek(1)[1])
    spool.close()
    again = Spool(tmp_path / "s")
    assert len(again.peek(10)[0]) == 3
    again.close()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_end_is_dropped_and_written_over(tmp_path, cut):
    spool = Spool(tmp_path / "s")
    for n in range(3):
        spool.append(closing(n))
    spool.close()
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:-cut])
    again = Spool(tmp_path / "s")
    assert again.append(closing(9))
    assert again.peek(10)[0] == [closing(0), closing(1), closing(9)]
    again.close()


def test_it_is_bounded_and_says_when_it_is_full(tmp_path):
    spool = Spool(tmp_path / "s", max_bytes=10_000)
    assert not spool.full
    assert spool.append(closing(1, 8000))
    assert spool.full
    assert not spool.append(closing(2, 8000))
    assert spool.peek(10)[0] == [closing(1, 8000)]
    spool.close()


def test_two_processes_cannot_share_it_and_only_the_owner_may_read_it(tmp_path):
    spool = Spool(tmp_path / "s")
    with pytest.raises(OSError):
        Spool(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    spool.close()


def test_files_of_workers_that_do_not_start_again_are_adopted_once(tmp_path):
    for name, ids in (("settlements-1.spool", (1,)), ("settlements-2.spool", (2, 3)), ("settlements-3.spool", (4,))):
        spool = Spool(tmp_path / name)
        for n in ids:
            spool.append(closing(n))
        if name != "settlements-3.spool":
            spool.close()
    own = Spool(tmp_path / "settlements-0.spool")
    mine = {"settlements-0.spool", "settlements-1.spool"}
    assert adopt(own, tmp_path, "settlements-*.spool", lambda path: path.name in mine) == 2
    assert own.peek(10)[0] == [closing(2), closing(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "settlements-0.spool", "settlements-1.spool", "settlements-3.spool",
    ], "a file in use stays, and so does that of a worker that will start"  # fmt: skip
    assert adopt(own, tmp_path, "settlements-*.spool", lambda path: path.name in mine) == 0
    spool.close()
    own.close()


def test_what_does_not_fit_stays_where_it_is(tmp_path):
    other = Spool(tmp_path / "settlements-9.spool")
    for n in range(4):
        other.append(closing(n, size=100))
    other.close()
    own = Spool(tmp_path / "settlements-0.spool", max_bytes=300)
    adopt(own, tmp_path, "settlements-*.spool", lambda path: path.name == "settlements-0.spool")
    again = Spool(tmp_path / "settlements-9.spool")
    assert len(again.peek(10)[0]) == 4
    again.close()
    own.close()
