"""Calendar periods of any zone at any instant: no gap, no overlap, and each begins where the last one ended."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.periods import LONGEST_PERIOD_US, begins_us, period_of

ZONES = sorted(available_timezones() - {"localtime", "Factory"})
#: 2000 to 2060, with all changes of clocks in between that the database knows.
instants = st.integers(946_684_800_000_000, 2_840_140_800_000_000)
kinds = st.sampled_from(["day", "month"])


def us(*when):
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000


@given(zone=st.sampled_from(ZONES), period=kinds, now=instants)
def test_an_instant_lies_in_one_period_and_the_next_begins_at_its_end(zone, period, now):
    name, ends = period_of(period, zone, now)
    assert now < ends <= now + LONGEST_PERIOD_US
    assert period_of(period, zone, ends - 1) == (name, ends)
    after, later = period_of(period, zone, ends)
    assert after > name
    assert later > ends


@given(zone=st.sampled_from(ZONES), period=kinds, now=instants)
def test_its_first_instant_is_the_end_of_the_one_before(zone, period, now):
    name, ends = period_of(period, zone, now)
    first = begins_us(period, zone, now)
    assert first <= now < ends
    assert period_of(period, zone, first)[0] == name != period_of(period, zone, first - 1)[0]


@given(zone=st.sampled_from(ZONES), now=instants)
def test_the_name_is_the_wall_clocks(zone, now):
    here = datetime.fromtimestamp(now // 1_000_000, ZoneInfo(zone))
    assert period_of("day", zone, now)[0] == here.date().isoformat()
    assert period_of("month", zone, now)[0] == here.date().isoformat()[:7]


@pytest.mark.parametrize(
    ("zone", "noon", "hours"),
    [
        ("Europe/Berlin", us(2026, 3, 29, 12), 23),
        ("Europe/Berlin", us(2026, 10, 25, 12), 25),
        ("Europe/Berlin", us(2026, 6, 1, 12), 24),
        ("Australia/Lord_Howe", us(2026, 10, 4, 2), 23.5),
        ("Africa/Cairo", us(2025, 4, 25, 12), 23),  # its midnight does not exist
        ("America/Havana", us(2025, 11, 2, 12), 25),  # its midnight comes twice
        ("Asia/Beirut", us(2025, 10, 25, 12), 25),  # its last hour comes twice
        ("Pacific/Apia", us(2011, 12, 31, 2), 24),  # the day before it did not exist
    ],
)
def test_days_are_as_long_as_the_clocks_make_them(zone, noon, hours):
    name, ends = period_of("day", zone, noon)
    begins = min(at for at in range(ends - 26 * 3_600_000_000, ends, 1_800_000_000) if period_of("day", zone, at)[0] == name)
    assert (ends - begins) / 3_600_000_000 == hours
