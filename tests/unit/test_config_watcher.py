from pathlib import Path

from gateway.config.watcher import Stamp, Watcher, stamp_of

OLD, HALF, NEW = Stamp(1, 10, 100), Stamp(2, 3, 200), Stamp(2, 10, 201)


def test_an_unchanged_file_is_never_read() -> None:
    watcher = Watcher(OLD)
    assert not any(watcher.look(OLD, now) for now in range(0, 5000, 100))


def test_a_change_is_read_once_when_it_was_stable_for_200_ms() -> None:
    watcher = Watcher(OLD)
    seen = [now for now in range(1000, 3000, 50) if watcher.look(NEW, now)]
    assert seen == [1200]


def test_a_file_still_being_written_is_not_read() -> None:
    watcher = Watcher(OLD)
    answers = [
        watcher.look(HALF, 0),
        watcher.look(HALF, 150),
        watcher.look(NEW, 250),
        watcher.look(NEW, 449),
        watcher.look(NEW, 450),
    ]
    assert answers == [False, False, False, False, True]


def test_a_vanished_file_is_no_change() -> None:
    watcher = Watcher(OLD)
    assert not watcher.look(None, 0)
    assert not watcher.look(None, 1000)
    assert not watcher.look(OLD, 1100)
    assert not watcher.look(OLD, 1400)


def test_back_to_what_is_loaded_is_no_change() -> None:
    watcher = Watcher(OLD)
    assert not watcher.look(NEW, 0)
    assert not watcher.look(OLD, 100)
    assert not watcher.look(OLD, 900)


def test_the_stamp_follows_symbolic_links(tmp_path: Path) -> None:
    one, two, link = tmp_path / "1", tmp_path / "2", tmp_path / "config.yaml"
    one.write_text("a: 1")
    two.write_text("a: 2")
    link.symlink_to(one)
    before = stamp_of(link)
    link.unlink()
    assert stamp_of(link) is None
    link.symlink_to(two)
    assert stamp_of(link) not in (before, None)
