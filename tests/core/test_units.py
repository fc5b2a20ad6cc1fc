from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core import errors, units
from chinchilla_lm.core.units import (
    Budget,
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    parse_budget,
    parse_count,
)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "device"),
    [
        ("5m", "seconds", 300, None),
        ("90s", "seconds", 90, None),
        ("2h", "seconds", 7200, None),
        ("1d", "seconds", 86400, None),
        ("1.5 hours", "seconds", 5400, None),
        ("1,500 s", "seconds", 1500, None),
        ("1e18", "flops", 1e18, None),
        ("1e18 FLOPs", "flops", 1e18, None),
        ("2.5E+20flops", "flops", 2.5e20, None),
        ("8 H100-hours", "device_hours", 8, "H100"),
        ("0.5 A100 80GB hours", "device_hours", 0.5, "A100 80GB"),
        ("3 gpu-h", "device_hours", 3, "gpu"),
        ("$50", "dollars", 50, None),
        (" $1,000.50 ", "dollars", 1000.5, None),
        ("20 USD", "dollars", 20, None),
    ],
)
def test_budgets_are_read_with_their_unit(text: str, kind: str, amount: float, device: str | None) -> None:
    assert parse_budget(text) == Budget(kind=kind, amount=amount, device=device, text=text.strip())  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0m", "-5m", "nan", "inf", "-inf s", "$0", "1e999", "1e308d", "0 H100-hours"])
def test_amounts_that_are_not_finite_and_positive_are_refused(text: str) -> None:
    with pytest.raises(errors.UnitError, match="finite amount > 0"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5 minuts", "'minutes'"),
        ("1e18 FLOPS/s", "'FLOPs'"),
        ("5M", "minutes as m"),
        ("3B", "without a suffix"),
        ("5", "5m for minutes"),
        ("", "has no number"),
        ("m", "has no number"),
        ("1,5h", "unknown unit"),
        ("$5m", "two units"),
        ("8 -hours", "H100-hours"),
        ("5 bananas\nand more", "H100-hours"),
    ],
)
def test_errors_say_the_way_out_on_one_line(text: str, hint: str) -> None:
    with pytest.raises(errors.UnitError) as caught:
        parse_budget(text)
    assert hint in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_one_clear_line(text: str) -> None:
    try:
        budget = parse_budget(text)
    except errors.UnitError as error:
        message = str(error)
    else:
        message = "read"
        assert math.isfinite(budget.amount)
        assert budget.amount > 0
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("text", "count"), [("3M", 3e6), ("20B", 2e10), ("1e9", 1e9), ("1.5k", 1500), ("2 t", 2e12)])
def test_counts_carry_powers_of_a_thousand(text: str, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["3G", "three", "", "0", "-1M", "nanM", "1e308B"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(errors.UnitError):
        parse_count(text)


@given(st.floats(min_value=1e-2, max_value=1e17))
def test_a_formatted_count_reads_back_within_its_three_digits(count: float) -> None:
    assert parse_count(format_count(count)) == pytest.approx(count, rel=0.0051)


@given(st.floats(min_value=1e-3, max_value=1e30))
def test_formatted_flops_read_back_within_their_three_digits(flops: float) -> None:
    assert parse_count(format_flops(flops).removesuffix(" FLOPs")) == pytest.approx(flops, rel=0.0051)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_count(73_825_280), "73.8M"),
        (format_count(999.9), "1k"),
        (format_count(0), "0"),
        (format_flops(5.76e23), "5.76e23 FLOPs"),
        (format_flops(1e18), "1e18 FLOPs"),
        (format_seconds(0.0042), "4.2 ms"),
        (format_seconds(59.99), "1 min 00 s"),
        (format_seconds(300), "5 min 00 s"),
        (format_seconds(3599.9), "1 h 00 min"),
        (format_seconds(3725), "1 h 02 min"),
        (format_seconds(90000), "1 d 01 h"),
        (format_bytes(1536), "1.5 KiB"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(5 * 2**30), "5 GiB"),
    ],
)
def test_amounts_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf, -3.0])
def test_every_float_can_be_written(amount: float) -> None:
    for write in (format_count, format_flops, format_seconds, format_bytes):
        assert write(amount)


def test_the_examples_in_error_messages_are_budgets() -> None:
    for example in units.BUDGET_EXAMPLES.replace(" or ", ", ").split(", "):
        assert parse_budget(example).amount > 0
