from gateway.limits.breaker import Breaker


def test_a_timeout_opens_at_once_and_a_lost_connection_only_at_the_second():
    breaker = Breaker(threshold=2)
    breaker.failed(0.0, timed_out=False)
    assert breaker.closed
    breaker.failed(0.0, timed_out=False)
    assert not breaker.closed
    other = Breaker()
    other.failed(0.0, timed_out=True)
    assert not other.closed


def test_an_answer_between_two_losses_resets_the_count():
    breaker = Breaker(threshold=2)
    breaker.failed(0.0, timed_out=False)
    breaker.succeeded()
    breaker.failed(1.0, timed_out=False)
    assert breaker.closed


def test_exactly_one_probe_when_the_pause_is_over():
    breaker = Breaker(first_pause_s=0.1)
    breaker.failed(0.0, timed_out=True)
    assert not breaker.probe(0.05)
    assert breaker.probe_in(0.05) == 0.05
    assert breaker.probe(0.1)
    assert not breaker.probe(0.2)
    assert breaker.probe_in(0.2) == float("inf")
    breaker.succeeded()
    assert breaker.closed
    assert breaker.probe(0.2)
    assert breaker.probe_in(0.2) == 0.0


def test_pauses_double_up_to_the_longest_and_begin_anew_after_success():
    breaker = Breaker(first_pause_s=0.1, longest_pause_s=0.3)
    breaker.failed(0.0, timed_out=True)
    pauses = []
    now = 0.0
    for _ in range(4):
        pauses.append(round(breaker.probe_in(now), 6))
        now += breaker.probe_in(now)
        assert breaker.probe(now)
        breaker.failed(now, timed_out=False)
    assert pauses == [0.1, 0.2, 0.3, 0.3]
    assert breaker.probe(now + 1)
    breaker.succeeded()
    breaker.failed(10.0, timed_out=True)
    assert round(breaker.probe_in(10.0), 6) == 0.1


def test_failures_while_open_do_not_prolong_the_pause():
    breaker = Breaker(first_pause_s=0.1)
    breaker.failed(0.0, timed_out=True)
    breaker.failed(0.09, timed_out=True)
    assert breaker.probe(0.1)
