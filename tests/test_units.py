# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import UsageError
from parmig.units import (
    GIB,
    KIB,
    MIB,
    format_bit_rate,
    format_cpus,
    format_ms,
    format_rate,
    format_size,
    parse_cpus,
    parse_duration_ns,
    parse_number,
    parse_rate,
    parse_size,
    write_duration_ns,
    write_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("512MiB", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("64k", 64 * KIB),
        ("1M", MIB),
        ("1MB", MIB),
        ("0", 0),
    ],
)
def test_a_size_is_read_in_iec_units(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "big", "12 furlongs", "MiB", "1..5GiB", "³", "4³MiB"])
def test_text_that_is_no_size_is_a_usage_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write it like 512MiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("100MiB/s", 100 * MIB),
        ("100MiB", 100 * MIB),
        (" 1GiB/s ", GIB),
        ("0", 0),
        ("10Gbit/s", 1_250_000_000),
        ("2.5Gbit", 312_500_000),
        ("64 kbit", 8000),
        ("800bit/s", 100),
    ],
)
def test_a_rate_is_read_with_and_without_its_per_second(text: str, bytes_per_s: int) -> None:
    assert parse_rate(text) == bytes_per_s


def test_text_that_is_no_rate_is_told_as_a_rate() -> None:
    with pytest.raises(UsageError, match="'fast' is not a rate; write it like 100MiB/s or 10Gbit/s"):
        parse_rate("fast")


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [("300ms", 300_000_000), ("1.5s", 1_500_000_000), ("10m", 600_000_000_000), ("2", 2_000_000_000), ("0", 0)],
)
def test_a_duration_is_read_in_nanoseconds(text: str, duration_ns: int) -> None:
    assert parse_duration_ns(text) == duration_ns


@pytest.mark.parametrize("text", ["", "soon", "5 fortnights", "³", "4³ms"])
def test_text_that_is_no_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration_ns(text)


@given(st.integers(0, 1 << 50))
def test_a_whole_number_of_bytes_is_read_as_it_stands(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("bytes_per_s", "text"), [(125_000_000, "1 Gbit/s"), (312_500, "2.5 Mbit/s"), (8000, "64 kbit/s"), (0, "0 bit/s")]
)
def test_rates_of_networks_are_printed_in_bits(bytes_per_s: int, text: str) -> None:
    assert format_bit_rate(bytes_per_s) == text


def test_sizes_and_rates_are_printed_in_iec_units() -> None:
    assert format_size(3 * GIB // 2) == "1.5 GiB"
    assert format_rate(100 * MIB) == "100 MiB/s"


@pytest.mark.parametrize(("milliseconds", "text"), [(12.34, "12.3 ms"), (9999.9, "9999.9 ms"), (12_340.0, "12.3 s")])
def test_long_times_are_printed_in_seconds(milliseconds: float, text: str) -> None:
    assert format_ms(milliseconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0"), (1, "1 bytes"), (4 * MIB, "4MiB"), (MIB + KIB, "1025KiB"), (GIB, "1GiB"), (4097, "4097 bytes")],
)
def test_a_written_size_is_exact(size_bytes: int, text: str) -> None:
    assert write_size(size_bytes) == text


@given(st.integers(0, 1 << 50))
def test_a_written_size_is_read_as_the_same_size(size_bytes: int) -> None:
    assert parse_size(write_size(size_bytes)) == size_bytes


@given(st.integers(0, 10_000_000))
def test_a_written_duration_is_read_as_the_same_duration(milliseconds: int) -> None:
    duration_ns = milliseconds * 1_000_000
    assert parse_duration_ns(write_duration_ns(duration_ns)) == duration_ns


@pytest.mark.parametrize(("duration_ns", "text"), [(0, "0"), (300_000_000, "300ms"), (30_000_000_000, "30s")])
def test_a_duration_is_written_in_the_largest_unit_that_fits(duration_ns: int, text: str) -> None:
    assert write_duration_ns(duration_ns) == text


def test_a_number_has_digits_only() -> None:
    assert parse_number(" 12 ") == 12
    for text in ("", "-1", "1.5", "two", "1" * 21):
        with pytest.raises(UsageError, match="is not a whole number; write digits only, like 4"):
            parse_number(text)


def test_a_list_of_processors_keeps_its_order() -> None:
    assert parse_cpus("8,0-3") == (8, 0, 1, 2, 3)
    assert format_cpus((8, 0, 1, 2, 3)) == "0-3,8"


@given(st.sets(st.integers(0, 8191), min_size=1))
def test_a_written_list_of_processors_is_read_as_the_same(cpus: set[int]) -> None:
    assert set(parse_cpus(format_cpus(cpus))) == cpus


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "0-8192", "-1", "0 1", "1-2-3"])
def test_what_is_no_list_of_processors_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a list of processors; write numbers and ranges, like 0-3,8"):
        parse_cpus(text)


def test_a_processor_is_named_once() -> None:
    with pytest.raises(UsageError, match="'0-2,1' names a processor twice"):
        parse_cpus("0-2,1")
