"""The page of a fit: from the record alone, self-contained, true to it, whole for every method, safe with any text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.page_reader import HOSTILE, Page

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.laws.findings.find import find_law
from chinchilla_lm.laws.findings.request import FitRequest, Target
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.report.chart import Line, Marks
from chinchilla_lm.report.doubt_charts import backtest_chart, doubt_charts, exponents_chart, residual_chart
from chinchilla_lm.report.fit_charts import fit_charts, loss_chart, run_layers, valleys_chart
from chinchilla_lm.report.fit_page import render_fit_page, save_fit_picture, write_fit_page

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366, params_convention="total")
FIGURES = ["loss", "valleys", "sizes", "exponents", "residuals", "residuals-ratio", "backtest", "drift"]


def sweep(noise: float = 0.003) -> RunTable:
    rng = np.random.default_rng(3)
    flops = np.repeat(np.geomspace(1e18, 1e21, 7), 6)
    params = TRUTH.optimum(flops)[0] * np.tile(np.geomspace(0.25, 4, 6), 7)
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(rng.normal(scale=noise, size=len(flops)))
    return RunTable(params=params, tokens=tokens, flops=flops, loss=loss)


def recorded(request: FitRequest, table: RunTable | None = None) -> dict[str, Any]:
    # Through JSON, as the page of a file gets it.
    return json.loads(json.dumps({**find_law(table or sweep(), request), "source": "sweep.csv"}, allow_nan=False))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return recorded(FitRequest(method="all", bootstrap=100, target=Target(flops=1e22)))


@pytest.fixture(scope="module")
def page(whole: dict[str, Any]) -> Page:
    return Page(render_fit_page(whole))


def test_every_figure_is_on_the_page_once_with_title_and_summary(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [name.removeprefix("fig-") for name in ids if name and name.startswith("fig-")] == FIGURES
    for _, attrs in page.tags:
        for name in (attrs.get("aria-labelledby") or "").split():
            assert name in ids
        if (attrs.get("href") or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in ids


def test_nothing_is_loaded_and_only_our_own_script_may_run(page: Page, whole: dict[str, Any]) -> None:
    assert not [attrs for _, attrs in page.tags if {"src", "srcset", "data", "action"} & attrs.keys()]
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "img")]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = hashlib.sha256(page.scripts[-1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in (policy or "")
    assert "default-src 'none'" in (policy or "")
    text = render_fit_page(whole)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_every_number_of_the_record_is_said_with_all_its_digits(page: Page, whole: dict[str, Any]) -> None:
    values = {attrs.get("value") for tag, attrs in page.tags if tag == "data"}
    wanted = [whole[name] for name in ("E", "A", "B", "alpha", "beta", "a", "b")]
    wanted += [end for one in whole["intervals"].values() for end in (one["low"], one["high"])]
    wanted += [whole["forecast"][name] for name in ("loss", "low", "high")]
    wanted += list(whole["forecast"]["raw"].values())
    wanted += [one[name] for one in whole["optima"] for name in ("params", "tokens", "loss")]
    assert {repr(number) for number in wanted} <= values


def test_the_record_is_in_the_page_without_its_resamples(page: Page, whole: dict[str, Any]) -> None:
    embedded = json.loads(page.scripts[1])
    assert embedded == {name: value for name, value in whole.items() if name != "draws"}


def test_warnings_come_first(whole: dict[str, Any]) -> None:
    text = " ".join(Page(render_fit_page({**whole, "warnings": ["the moon is full"]})).words)
    assert text.index("the moon is full") < text.index("The law")
    assert "Nothing was found" in " ".join(Page(render_fit_page({**whole, "warnings": []})).words)


@pytest.mark.parametrize(
    "request_",
    [
        FitRequest(bootstrap=0, diagnosis=False),
        FitRequest(method="isoflop"),
        FitRequest(form="coupled", bootstrap=20, diagnosis=False),
        FitRequest(form="kaplan", bootstrap=0, diagnosis=False),
        FitRequest(form="overtraining", bootstrap=0, diagnosis=False, target=Target(params=1e9, tokens=1e11)),
    ],
    ids=["plain", "isoflop", "coupled", "kaplan", "overtraining"],
)
def test_every_method_and_form_has_its_page(request_: FitRequest) -> None:
    record = recorded(request_)
    words = " ".join(Page(render_fit_page(record)).words)
    assert "sweep.csv" in words
    assert "not recorded" not in words


def test_few_runs_have_a_page_that_says_what_is_missing() -> None:
    few = sweep().take(np.arange(0, 42, 7))
    words = " ".join(Page(render_fit_page(recorded(FitRequest(bootstrap=20), few))).words)
    assert "8 at least" in words


def test_the_envelope_has_its_page() -> None:
    steps = np.geomspace(100, 100_000, 30)
    sizes = np.geomspace(3e7, 3e9, 8)
    params, tokens = np.repeat(sizes, 30), np.tile(steps * 524288.0, 8)
    table = RunTable(
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=TRUTH.loss(params, tokens),
        labels=tuple(f"s{size:.3g}" for size in params),
    )
    record = recorded(FitRequest(method="envelope", schedule="constant"), table)
    charts = {chart.name: chart for chart in fit_charts(record)}
    assert "approach 1" in {layer.label.partition(":")[0] for layer in charts["sizes"].layers}
    Page(render_fit_page(record))


def test_hostile_text_stays_text(whole: dict[str, Any]) -> None:
    record = {**whole, "source": f"dir/{HOSTILE}", "warnings": [HOSTILE], "hash": HOSTILE}
    page = Page(render_fit_page(record))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_an_open_interval_says_that_there_is_no_limit(whole: dict[str, Any]) -> None:
    intervals = {**whole["intervals"], "A": {"low": 1.0, "high": None, "se": None}}
    assert "no limit" in " ".join(Page(render_fit_page({**whole, "intervals": intervals})).words)


def test_every_run_is_drawn_where_it_lies(whole: dict[str, Any]) -> None:
    points, layers = run_layers(whole, "flops", "loss")
    runs = sorted(zip(whole["runs"]["flops"], whole["runs"]["loss"], strict=True))
    assert sorted((point.x, point.y) for point in points) == runs
    assert sum(len(layer.points) for layer in layers if isinstance(layer, Marks)) == 42
    assert len(layers) <= 6


def test_the_frontier_drawn_is_the_law_recorded(whole: dict[str, Any]) -> None:
    chart = loss_chart(whole)
    assert chart is not None
    law = AdditiveLaw.from_dict(whole)
    curve = next(layer for layer in chart.layers if isinstance(layer, Line) and layer.colour == "law")
    for flops, loss in curve.points:
        assert loss == pytest.approx(law.optimal_loss(flops))


def test_the_parabola_passes_through_its_lowest_point(whole: dict[str, Any]) -> None:
    chart = valleys_chart(whole)
    assert chart is not None
    for valley in whole["isoflop"]["valleys"]:
        parabola = valley["parabola"]
        lowest = min(zip(parabola["loss"], parabola["params"], strict=True))
        assert lowest[0] == pytest.approx(valley["best"]["loss"], rel=1e-4)
        assert lowest[1] == pytest.approx(valley["best"]["params"], rel=0.2)  # a step of the drawn curve


def test_residuals_are_those_of_the_law(whole: dict[str, Any]) -> None:
    law = AdditiveLaw.from_dict(whole)
    runs = whole["runs"]
    fitted = np.asarray(law.loss(np.array(runs["params"]), np.array(runs["tokens"])))
    expected = 100 * np.log(np.array(runs["loss"]) / fitted)
    assert runs["residual_percent"] == pytest.approx(expected.tolist(), abs=1e-9)
    for against in ("flops", "tokens_per_param"):
        assert residual_chart(whole, against) is not None


def test_the_band_of_the_back_test_lies_around_its_errors(whole: dict[str, Any]) -> None:
    chart = backtest_chart(whole)
    assert chart is not None
    calibrated, raw = chart.layers[0].points, chart.layers[1].points  # type: ignore[union-attr]
    assert all(low < 0 < high for _, low, high in (*calibrated, *raw))  # type: ignore[misc]
    drawn = {layer.label: len(layer.points) for layer in chart.layers if isinstance(layer, Marks)}
    assert set(drawn.values()) == {len(whole["backtest"]["rolling"]["cases"])}


def test_the_exponents_are_named_side_by_side(whole: dict[str, Any]) -> None:
    chart = exponents_chart(whole)
    assert chart is not None
    names = [name for _, name in chart.x.names]
    assert names[:4] == ["2", "3", "delta", "pairs"]
    assert len(names) == len(set(names)) == len(whole["exponents"])


def test_the_picture_holds_every_figure(whole: dict[str, Any], tmp_path: Path) -> None:
    charts = [*fit_charts(whole), *doubt_charts(whole)]
    assert sorted(chart.name for chart in charts) == sorted(FIGURES)
    drawn = save_fit_picture(whole, tmp_path / "fit.svg").read_text()
    assert drawn.count('id="axes_') == len(charts)


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chinchilla fit --out law.json"):
        write_fit_page({"E": 1.8}, tmp_path / "fit.html")


def test_the_same_record_gives_the_same_page(whole: dict[str, Any], tmp_path: Path) -> None:
    first, second = (write_fit_page(whole, tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert first == second
    assert len(first) < 1_500_000


def test_the_page_needs_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, chinchilla_lm.report.fit_page; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
