from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.generate.stops import StopStrings

letters = st.text(alphabet="ab你", max_size=12)


def _cut(text: str, stops: list[str]) -> str:
    """Character by character: the first stop that is complete ends the text before it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(letters, max_size=8), stops=st.lists(letters.filter(bool), max_size=3))
def test_the_text_ends_before_the_first_stop_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    held = StopStrings(stops)
    released = [held.push(piece) for piece in pieces]
    if held.found is None:
        released.append(held.finish())
    assert "".join(released) == _cut(text, stops)
    assert (held.found is not None) == (_cut(text, stops) != text)
    if held.found is not None:
        assert held.position == len(_cut(text, stops))


@settings(max_examples=200, deadline=None)
@given(text=letters, stops=st.lists(letters.filter(bool), min_size=1, max_size=3))
def test_nothing_of_a_possible_stop_leaves_early_and_nothing_else_is_held(text: str, stops: list[str]) -> None:
    held = StopStrings(stops)
    released = ""
    for end, character in enumerate(text, start=1):
        released += held.push(character)
        if held.found is not None:
            return
        suspects = [
            size for size in range(1, end + 1) if any(stop.startswith(text[end - size : end]) for stop in stops)
        ]
        assert released == text[: end - max(suspects, default=0)]


def test_a_stop_may_straddle_many_pieces() -> None:
    held = StopStrings(["\n\nUser:"])
    assert [held.push(piece) for piece in ("Hi", "\n", "\n", "Us", "e", "r", ": more")] == ["Hi", *[""] * 6]
    assert (held.found, held.position, held.push("x")) == ("\n\nUser:", 2, "")
