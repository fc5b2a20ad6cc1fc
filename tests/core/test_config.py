from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.config import dump_toml, from_mapping, load_toml
from chinchilla_lm.core.errors import ConfigError, PlanError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    name: str = "adamw"
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    is_fast: bool = False
    schedule: Literal["wsd", "cosine"] = "wsd"
    dropout: float | None = None
    pair: tuple[float, str] = (0.5, "half")
    inner: Inner
    spare: Inner | None = None
    rungs: tuple[Inner, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)
    where: Path = Path("out")

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise PlanError(f"steps={self.steps} must be >= 0; write 1")


finite = st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
inners = st.builds(Inner, rate=finite, name=texts, seeds=st.lists(integers).map(tuple))
outers = st.builds(
    Outer,
    steps=st.integers(0, 2**63 - 1),
    is_fast=st.booleans(),
    schedule=st.sampled_from(["wsd", "cosine"]),
    dropout=st.none() | finite,
    pair=st.tuples(finite, texts),
    inner=inners,
    spare=st.none() | inners,
    rungs=st.lists(inners, max_size=2).map(tuple),
    scales=st.dictionaries(texts, finite, max_size=3),
)


def read_back(text: str, tmp_path: Path) -> Outer:
    (tmp_path / "c.toml").write_text(text, encoding="utf-8", newline="")
    return load_toml(Outer, tmp_path / "c.toml")


@given(outers)
def test_toml_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, value: Outer) -> None:
    folder = tmp_path_factory.getbasetemp()
    again = read_back(dump_toml(value, {}), folder)
    assert again == value
    assert math.copysign(1, again.inner.rate) == math.copysign(1, value.inner.rate)


def test_comments_end_their_lines_and_change_nothing(tmp_path: Path) -> None:
    value = Outer(steps=3, inner=Inner(rate=1e-3))
    text = dump_toml(value, {"steps": "chosen by\nthe law", "inner.rate": "k/d # untested", "inner": "the optimizer"})
    assert "steps = 3  # chosen by the law\n" in text
    assert "[inner]  # the optimizer\n" in text
    assert "rate = 0.001  # k/d # untested\n" in text
    assert read_back(text, tmp_path) == value


def test_a_comment_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="'inner.lr'"):
        dump_toml(Outer(steps=3, inner=Inner(rate=1.0)), {"inner.lr": "no such key"})


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("step = 3\n[inner]\nrate = 1.0", "'step'", "did you mean 'steps'?"),
        ("steps = 3\n[inner]\nrate = 1.0\nnmae = 'x'", "'inner.nmae'", "did you mean 'name'?"),
        ("steps = 3\nbananas = 1\n[inner]\nrate = 1.0", "'bananas'", "the keys are steps"),
        ("steps = 3", "'inner'", "a table"),
        ("steps = 3\n[inner]", "'inner.rate'", "a number"),
        ("steps = 3.0\n[inner]\nrate = 1.0", "steps", "a whole number"),
        ("steps = true\n[inner]\nrate = 1.0", "steps", "a whole number"),
        ("steps = 3\nis_fast = 1\n[inner]\nrate = 1.0", "is_fast", "true or false"),
        ("steps = 3\ninner = 4", "inner", "a table"),
        ("steps = 3\nschedule = 'linear'\n[inner]\nrate = 1.0", "schedule", "'wsd', 'cosine'"),
        ("steps = 3\ndropout = 'none'\n[inner]\nrate = 1.0", "dropout", "leave it out"),
        ("steps = 3\npair = [1.0]\n[inner]\nrate = 1.0", "pair", "a list of a number, text in quotes"),
        ("steps = 3\n[inner]\nrate = 1.0\nseeds = [1, 'x']", "inner.seeds[1]", "a whole number"),
        ("steps = 3\n[inner]\nrate = 1.0\n[[rungs]]\nname = 'x'", "'rungs[0].rate'", "a number"),
        ("steps = -1\n[inner]\nrate = 1.0", "steps=-1", "write 1"),
        ("steps = \n", "c.toml", "not TOML"),
    ],
)
def test_errors_name_the_file_the_key_and_the_way_out(tmp_path: Path, text: str, key: str, hint: str) -> None:
    with pytest.raises((ConfigError, PlanError)) as caught:
        read_back(text, tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "c.toml"))
    assert key in message
    assert hint in message
    assert "\n" not in message


def test_absent_files_and_folders_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match="write the path"):
            load_toml(Outer, path)


def test_whole_numbers_are_read_as_floats_and_never_back() -> None:
    assert repr(from_mapping(Inner, {"rate": 3}, where="test").rate) == "3.0"


def test_integers_beyond_toml_are_refused() -> None:
    with pytest.raises(ConfigError, match="64-bit"):
        dump_toml(Outer(steps=2**63, inner=Inner(rate=1.0)), {})


def test_records_are_frozen() -> None:
    value = from_mapping(Inner, {"rate": 1.0}, where="test")
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.rate = 2.0  # type: ignore[misc]
