"""Axes, ticks and thinning against arithmetic that is easy to check."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.report import svg
from chinchilla_lm.report.chart import (
    PALETTE,
    Axis,
    Band,
    Chart,
    Line,
    Marks,
    Point,
    Span,
    axis_over,
    bin_means,
    ramp_colour,
    tick_text,
    ticks,
)

NAMESPACE = "{http://www.w3.org/2000/svg}"


@given(
    low=st.floats(1e-6, 1e6),
    ratio=st.floats(1.0001, 1e9),
    at_most=st.integers(2, 14),
    is_log=st.booleans(),
)
def test_ticks_are_few_inside_and_rising(low: float, ratio: float, at_most: int, is_log: bool) -> None:
    axis = Axis(label="x", low=low, high=low * ratio, is_log=is_log)
    values = [value for value, _ in ticks(axis, at_most)]
    assert len(values) <= at_most + 1
    assert values == sorted(set(values))
    slack = 1e-9 * axis.high
    assert all(axis.low - slack <= value <= axis.high + slack for value in values)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2e6, "count", "2M"),
        (150, "count", "150"),
        (1e9, "count", "1B"),
        (999_999, "count", "1M"),
        (1e12, "flops", "10¹²"),
        (3.2e18, "flops", "3.2×10¹⁸"),
        (2.25, "plain", "2.25"),
    ],
)
def test_ticks_read_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert tick_text(value, unit) == text  # type: ignore[arg-type]


def test_ticks_of_one_axis_share_their_decimals() -> None:
    texts = [text for _, text in ticks(Axis(label="y", low=2.4, high=3.6), 6)]
    assert len({len(text.partition(".")[2]) for text in texts}) == 1


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=400), st.integers(2, 60))
def test_bin_means_keep_the_mean_and_stay_short(losses: list[float], bins: int) -> None:
    points = [(float(index + 1), loss) for index, loss in enumerate(losses)]
    thinned = bin_means(points, bins=bins)
    assert len(thinned) <= bins or len(points) <= bins
    assert min(losses) - 1e-9 <= min(y for _, y in thinned)
    assert max(losses) + 1e-9 >= max(y for _, y in thinned)
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


def test_bin_means_equal_numpys_histogram() -> None:
    generator = np.random.default_rng(3)
    xs, ys = np.sort(generator.uniform(1, 1e4, 5000)), generator.normal(size=5000)
    edges = np.geomspace(xs[0], xs[-1], 41)
    counts, _ = np.histogram(xs, edges)
    sums, _ = np.histogram(xs, edges, weights=ys)
    ours = [y for _, y in bin_means(list(zip(xs.tolist(), ys.tolist(), strict=True)), bins=40)]
    np.testing.assert_allclose(ours, (sums / np.maximum(counts, 1))[counts > 0], rtol=1e-9)


def test_bin_means_leave_out_what_a_log_axis_cannot_show() -> None:
    assert bin_means([(0.0, 9.0), (1.0, 2.0), (2.0, math.nan)], bins=5) == ((1.0, 2.0),)


@pytest.mark.parametrize("is_log", [True, False])
def test_an_axis_over_one_value_still_has_length(is_log: bool) -> None:
    axis = axis_over([3.0, 3.0], "x", is_log=is_log)
    assert axis.low < 3.0 < axis.high
    assert axis.fraction(3.0) == pytest.approx(0.5, abs=0.01)


def test_the_ramp_uses_known_colours_from_first_to_last() -> None:
    for count in range(1, 12):
        assert {ramp_colour(index, count) for index in range(count)} <= PALETTE.keys()
    assert (ramp_colour(0, 4), ramp_colour(3, 4)) == ("r0", "r5")


def relative_luminance(colour: str) -> float:
    """WCAG 2.2, definition of relative luminance."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("index", "paper"), [(0, "#fdfcfa"), (1, "#151618")])
def test_lines_stand_out_from_the_paper(index: int, paper: str) -> None:
    for name, colours in PALETTE.items():
        one, other = relative_luminance(colours[index]), relative_luminance(paper)
        contrast = (max(one, other) + 0.05) / (min(one, other) + 0.05)
        assert contrast >= 3.0, (name, contrast)  # WCAG 2.2, 1.4.11: graphical objects


def a_chart() -> Chart:
    return Chart(
        name="test",
        title="A & B",
        summary="words",
        x=Axis(label="size <N>", low=1.0, high=100.0, is_log=True, unit="count"),
        y=Axis(label="loss", low=1.0, high=3.0),
        layers=(
            Span(label="span", colour="quiet", low=2.0, high=20.0),
            Band(label="band", colour="law", points=((1.0, 1.5, 2.5), (100.0, 1.2, 2.0))),
            Line(label="line", colour="r1", points=((1.0, 3.0), (10.0, 2.0), (1e30, -50.0)), end_label="end"),
            Marks(label="marks", colour="past", points=(Point(x=10.0, y=2.0, text="<b>", low=1.8, high=2.2),)),
            Marks(label="cannot be drawn", colour="past", points=(Point(x=0.0, y=2.0),), marker="star"),
        ),
    )


@pytest.mark.parametrize("width", [346, 780])
def test_svg_is_well_formed_and_its_paths_hold_only_numbers(width: int) -> None:
    root = ElementTree.fromstring(
        str(svg.draw(a_chart(), width=width, height=300)).replace("<svg ", f'<svg xmlns="{NAMESPACE[1:-1]}" ', 1)
    )
    paths = [path.attrib["d"] for path in root.iter(f"{NAMESPACE}path")]
    assert paths
    for path in paths:
        assert re.fullmatch(r"(?:[MLHVhZ](?:-?\d+(?:\.\d+)?(?: -?\d+(?:\.\d+)?)?)?)+", path), path
    labels = " ".join(element.text or "" for element in root.iter(f"{NAMESPACE}text"))
    assert "size <N>, log scale" in labels
    assert ("end" in labels) == (width > svg.WIDE)
    assert [element.text for element in root.iter(f"{NAMESPACE}title")] == ["<b>"]


def test_a_mark_is_drawn_where_its_numbers_say() -> None:
    drawn = str(svg.draw(a_chart(), width=346, height=300))
    left, right, top, bottom = (float(edge) for edge in re.search(r'data-frame="([^"]+)"', drawn)[1].split(","))  # type: ignore[index]
    circle = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert circle is not None
    assert float(circle[1]) == pytest.approx((left + right) / 2, abs=0.06)  # 10 is halfway from 1 to 100 on a log axis
    assert float(circle[2]) == pytest.approx((top + bottom) / 2, abs=0.06)  # 2 is halfway from 1 to 3


def test_the_legend_names_each_layer_once() -> None:
    chart = a_chart()
    assert [layer.label for layer in chart.legend()] == ["span", "band", "line", "marks", "cannot be drawn"]
    assert all(str(svg.legend_key(layer)).startswith("<svg") for layer in chart.legend())
