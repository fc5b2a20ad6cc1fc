"""What every page of ours is made of: the templates, figures as markup, JSON that stays data, and the security policy.

A page loads nothing: style, script and pictures are inside it, and its content security policy names their hashes, so
that text from a model, a corpus or a table cannot run even if escaping failed.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from chinchilla_lm.core.units import format_bytes, format_count, format_flops, format_seconds
from chinchilla_lm.report import svg
from chinchilla_lm.report.chart import PALETTE, Chart, Line, Marks
from chinchilla_lm.report.rundir import is_number

DESK_PIXELS, PHONE_PIXELS = 780.0, 346.0
"""Widths that figures are drawn for: the text column on a desk, and a phone of 380 pixels less its margins."""
_HEIGHTS = {"strip": (96.0, 96.0)}
_HEIGHT_DEFAULT = (420.0, 320.0)
_FRAME_HEIGHT, _ROW_HEIGHT = 80.0, 30.0
"""Of a figure of named rows: what stands above and below them, and each row."""


@functools.cache
def page_template(name: str) -> jinja2.Template:
    """Return a template of this package; it refuses names that it was not given."""
    # Compiling one takes 0.2 s, most of a report; templates cannot change while the program runs.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chinchilla_lm.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(page_filters())
    return environment.get_template(name)


def page_filters() -> dict[str, Callable[..., Markup]]:
    """Return the filters of the templates: each writes a number for people and for machines."""
    return {
        "loss": lambda value: _number(value, lambda number: f"{number:.4f}"),
        "digits": lambda value: _number(value, lambda number: f"{number:.4g}"),
        "count": lambda value: _number(value, format_count),
        "flops": lambda value: _number(value, format_flops),
        "flops_per_s": lambda value: _number(value, lambda number: format_flops(number).replace("FLOPs", "FLOP/s")),
        "seconds": lambda value: _number(value, format_seconds),
        "bytes": lambda value: _number(value, format_bytes),
        "percent": lambda value: _number(value, lambda number: f"{number:.3g} %"),
        "end": _end,
    }


def page_parts(charts: Iterable[Chart]) -> dict[str, Any]:
    """Return what every template needs: figures, style and script with their hashes, and the values of the figures."""
    drawn = list(charts)
    style = _palette_css() + _asset("style.css")
    script = _asset("hover.js")
    return {
        "figures": {chart.name: _figure(chart) for chart in drawn},
        "style": Markup(style),
        "style_hash": _csp_hash(style),
        "script": Markup(script),
        "script_hash": _csp_hash(script),
        "chart_values": json_block({chart.name: _hover_values(chart) for chart in drawn}),
    }


def json_block(value: Any) -> Markup:
    """JSON that cannot end its script element or start a comment in it."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> str:
    return (resources.files("chinchilla_lm.report") / "templates" / name).read_text(encoding="utf-8")


def _number(value: Any, write: Any) -> Markup:
    """A number for people, with every digit of the record in the `value` attribute for machines."""
    if not is_number(value):
        return Markup('<span class="absent">not recorded</span>')
    return Markup('<data value="{}">{}</data>').format(repr(value), write(value))


def _end(value: Any, kind: str) -> Markup:
    """One end of an interval, by another filter's name; an end that the runs set no limit to says so."""
    return Markup("no limit") if value is None else page_filters()[kind](value)


def _figure(chart: Chart) -> dict[str, Any]:
    wide, tall = _HEIGHTS.get(chart.name, _HEIGHT_DEFAULT)
    if chart.y.names:
        wide = tall = _FRAME_HEIGHT + _ROW_HEIGHT * len(chart.y.names)
    return {
        "name": chart.name,
        "title": chart.title,
        "summary": chart.summary,
        "desk": svg.draw(chart, width=DESK_PIXELS, height=wide),
        "phone": svg.draw(chart, width=PHONE_PIXELS, height=tall),
        "legend": [(svg.legend_key(layer), layer.label) for layer in chart.legend()],
    }


def _hover_values(chart: Chart) -> dict[str, Any]:
    """The named values of a chart, with five digits: finer than a pixel."""
    series = []
    for layer in chart.layers:
        if isinstance(layer, Line) and (layer.label or layer.end_label):
            points = [[_short(x), _short(y)] for x, y in layer.points]
            series.append({"name": layer.label or layer.end_label, "points": points})
        elif isinstance(layer, Marks):
            points = [[_short(point.x), _short(point.y)] for point in layer.points]
            texts = [point.text for point in layer.points]
            series.append({"name": layer.label, "points": points, "texts": texts})
    return {"x": chart.x.label, "series": series}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _finite(value: Any) -> Any:
    """The value with null for every nan and inf, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _palette_css() -> str:
    """The chart colours as custom properties, for light and dark pages, and the classes that use them."""

    def variables(index: int) -> str:
        return "".join(f"--{name}:{colours[index]};" for name, colours in PALETTE.items())

    classes = "".join(f".c-{name}{{--c:var(--{name})}}" for name in PALETTE)
    light = f":root{{{variables(0)}}}"
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(1)}}}}}"
    return f"{light}{dark}{classes}\n"
