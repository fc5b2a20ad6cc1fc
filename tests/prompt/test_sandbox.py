"""No template escapes, and every render ends: known payloads, growth by every operator, and random templates."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ChinchillaError, ConfigError, DataError
from chinchilla_lm.prompt import metering
from chinchilla_lm.prompt.sandbox import compile_text

ROW = {
    "text": "a good film",
    "choices": ["yes", "no"],
    "label": 1,
    "answers": [{"text": "Oslo"}],
    "turns": [[1, 2]],
    "long": "x" * 100_000,
}

# Collected server-side template injections (PayloadsAllTheThings, HackTricks, CVE-2014-1402, CVE-2016-10745,
# CVE-2019-10906, CVE-2024-56326, CVE-2025-27516).
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' + 'ss__'] }}",
    "{{ text|attr('__class__') }}",
    "{{ text|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ choices.append('x') }}",
    "{{ choices.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ dict(a=1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(text) }}",
    "{{ '{0.__class__}'.format_map({'0': text}) }}",
    "{{ ('{0.__class__}'|string).format(text) }}",
    "{{ ['{0.__class__}'][0].format(text) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(text) }}",
    "{{ text.format.__self__ }}",
    "{{ choices|map('attr', '__class__')|list }}",
    "{{ [text]|map(attribute='__class__')|join }}",
    "{{ choices|join(attribute='__class__') }}",
    "{{ choices|groupby('__class__') }}",
    "{{ choices|selectattr('__class__') }}",
    "{% for x in ''.__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import system %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% block a %}{% endblock %}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% call m() %}{% endcall %}",
    "{% filter upper %}a{% endfilter %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% with a = 1 %}{% endwith %}",
    "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}",
    "{% set a, b = 1, 2 %}",
    "{% for x in choices recursive %}{{ loop(choices) }}{% endfor %}",
    "{{ loop.__class__ }}",
    "{% for x in choices %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in choices %}{{ loop.cycle.__func__ }}{% endfor %}",
    "{{ _catch }}",
    "{{ text|_catch }}",
    "{{ text|_metered }}",
    "{{ ().__class__ }}",
    "{{ (1).__class__ }}",
    "{{ 1.5.real.__class__ }}",
    "{{ text.encode() }}",
    "{{ text.translate({}) }}",
    "{{ text.split.__self__.__class__ }}",
    "{{ range.__class__ }}",
    "{{ range.__globals__ }}",
    "{{ text is callable }}",
    "{{ text is filter }}",
    "{{ debug }}",
    "{% debug %}",
    "{{ choices }}",
    "{{ text.upper }}",
]


@pytest.mark.parametrize("payload", ESCAPES)
def test_known_payloads_are_refused(payload):
    with pytest.raises(ChinchillaError) as refusal:
        compile_text(payload, "t.yaml: item").render(ROW)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("t.yaml: item")


GROWING = [
    "{{ 'a' * 100000000 }}",
    "{{ 100000000 * 'a' }}",
    "{{ [1] * 100000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%0100000000d' % 1 }}",
    "{{ '{:0100000000d}'.format(1) }}",
    "{{ 'a'.ljust(100000000) }}",
    "{{ 'a'.zfill(100000000) }}",
    "{{ 'a'.center(100000000) }}",
    "{{ 'a'|center(100000000) }}",
    "{{ text|indent(100000000) }}",
    "{{ text|wordwrap(1) }}",
    "{{ range(100000000)|join }}",
    "{{ range(1000)|batch(100000000)|list }}",
    "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{% for b in range(1000) %}{{ text }}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{{ 'a' * 100000 }}{% endfor %}",
    "{% for a in range(1000) %}{% if 'b' in 'a' * 100000 %}{% endif %}{% endfor %}",
    "{% set a = 'aaaaaaaaaa' %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "{% set a = ['a'] %}" + "{% set a = [a, a] %}" * 40 + "{{ a|join }}",
    "{% set a = ['a'] %}" + "{% set a = a + a %}" * 40 + "{{ a|length }}",
    "{% set a = {'x': 1} %}" + "{% set a = {'x': a, 'y': a} %}" * 40 + "{{ a == a }}",
    "{% set a = 'ab' %}" + "{% set a = a.replace('a', a) %}" * 40 + "{{ a }}",
    "{% set a = 'ab' %}" + "{% set a = a|replace('a', a) %}" * 40 + "{{ a }}",
    "{% set a = 'ab' %}" + "{% set a = a.join(a) %}" * 40 + "{{ a }}",
    "{% set a = 'ab' %}" + "{% set a = a|join(a) %}" * 40 + "{{ a }}",
    "{% set a = 10 %}" + "{% set a = a * a %}" * 40 + "{{ a }}",
    "{{ text.replace('', 'a' * 100000) }}",
    "{% for a in range(1000) %}{% for b in range(99) %}{% if 'xy' in long %}{% endif %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{% for b in range(99) %}{% if long.count('xy') %}{% endif %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{% for b in range(99) %}{% set c = long[1:] %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{% for b in range(99) %}{% if long[1:] %}{% endif %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{% for b in range(99) %}{% if ["
    + "1," * 2000
    + "] %}{% endif %}{% endfor %}{% endfor %}",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + "[" * 500 + "1" + "]" * 500 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "1+" * 9000 + "1 }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{{ " + "9" * 10000 + " }}",
    "a" * 20_001,
]


@pytest.mark.parametrize("payload", GROWING, ids=[payload[:40] for payload in GROWING])
def test_growth_is_refused_before_it_happens(payload):
    # Unbounded, each of these takes minutes or all memory.
    with pytest.raises(ChinchillaError):
        compile_text(payload, "t.yaml: item").render(ROW)


def test_the_plain_things_work_as_in_jinja():
    sources = [
        "Review: {{ text }}\nSentiment:",
        "{% for choice in choices %}{{ loop.index }}. {{ choice }}{{ '' if loop.last else '\n' }}{% endfor %}",
        "{{ text.split(' ')[:-1]|join(' ') }}",
        "{{ choices|join(', ') }} {{ choices|length }} {{ choices[0]|upper }}",
        "{{ answers[0].text if answers else 'none' }} {{ answers[0]['text'] }}",
        "{% if label == 1 and text is string %}{{ label + 2 }}{% elif label %}x{% else %}y{% endif %}",
        "{{ missing|default('none') }} {{ missing is defined }} {{ text is defined }}",
        "{% set last = choices[-1] %}{{ last }} {{ 'yes' in choices }} {{ text.replace('good', 'bad').title() }}",
        "{{ 'ABC'[label] }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ choices.index('no') }} {{ ' x '|trim }}",
        "{% for turn in turns %}{% for a in turn %}{{ a }}{% endfor %}{% else %}none{% endfor %}",
        "trailing line\n",
    ]
    plain = jinja2.Environment(keep_trailing_newline=True)
    for source in sources:
        assert compile_text(source, "t").render(ROW) == plain.from_string(source).render(ROW)


def test_an_expression_gives_its_value():
    assert compile_text("{{ choices }}", "t").value(ROW) == ["yes", "no"]
    assert compile_text("{{ answers[0] }}", "t").value(ROW) == {"text": "Oslo"}
    assert compile_text("{{ label }}", "t").value(ROW) == 1
    assert compile_text("{{ [text, 'b'] }}", "t").value(ROW) == ["a good film", "b"]
    assert compile_text("x{{ label }}", "t").value(ROW) == "x1"
    assert compile_text("plain", "t").value(ROW) == "plain"
    with pytest.raises(DataError, match="'missing' is undefined"):
        compile_text("{{ missing }}", "t").value(ROW)


def test_a_rows_text_is_never_a_template():
    row = {"text": "{{ 7 * 7 }}{% for x in range(9) %}"}
    assert compile_text("Say: {{ text }}", "t").render(row) == "Say: {{ 7 * 7 }}{% for x in range(9) %}"


def test_only_plain_values_reach_a_template():
    class Loud(str):
        __slots__ = ()

    for value in (Loud("a"), object(), {1: "a"}, {"a": {"b": object()}}, [open], b"bytes"):
        with pytest.raises(DataError, match="a prompt takes text"):
            compile_text("{{ text }}", "t").render({"text": value})


def test_errors_name_place_line_and_way_out():
    with pytest.raises(ConfigError, match=r"^x\.yaml: item: line 2: the filter attr is not known; choose among"):
        compile_text("a\n{{ text|attr('x') }}", "x.yaml: item")
    with pytest.raises(ConfigError, match=r"line 1: unexpected end of template|unexpected 'end of template'"):
        compile_text("{% if", "x.yaml: item")
    with pytest.raises(DataError, match=r"'dict object' has no attribute 'tex'; give the row that field"):
        compile_text("{{ answers[0].tex }}", "x").render(ROW)


# Pieces of the grammar, joined at random: nests, repeats and misuses what the sandbox allows.
_ATOMS = st.sampled_from(
    ["text", "choices", "label", "'ab'", "3", "missing", "answers[0].text", "range(9)", "[text, 1]"]
)
_EXPRESSIONS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "-", "%", "/", "//", "~", "**", "==", "in", "and"]), inner).map(
            " ".join
        ),
        st.tuples(inner, st.sampled_from(["|join", "|upper", "|replace('a', text)", "|list", "|length", "|sort"])).map(
            "".join
        ),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"({text}).split('a')"),
        inner.map(lambda text: f"({text})[0]"),
        inner.map(lambda text: f"({text}).__class__"),
    ),
    max_leaves=8,
)
_TEMPLATES = st.recursive(
    st.one_of(st.text(max_size=8), _EXPRESSIONS.map(lambda text: "{{ " + text + " }}")),
    lambda inner: st.one_of(
        st.tuples(_EXPRESSIONS, inner).map(lambda pair: f"{{% for x in {pair[0]} %}}{pair[1]}{{% endfor %}}"),
        st.tuples(_EXPRESSIONS, inner).map(lambda pair: f"{{% if {pair[0]} %}}{pair[1]}{{% endif %}}"),
        st.tuples(_EXPRESSIONS, inner).map(lambda pair: f"{{% set text = {pair[0]} %}}{pair[1]}"),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(source=_TEMPLATES, text=st.text(max_size=200))
def test_any_template_gives_bounded_text_or_one_line(source, text):
    try:
        rendered = compile_text(source, "t").render({**ROW, "text": text})
    except ChinchillaError as refusal:
        rendered = str(refusal)
    assert len(rendered) <= metering.MAX_RENDERED_CHARACTERS
    assert "<class" not in rendered.replace(source, "").replace(text, "")
