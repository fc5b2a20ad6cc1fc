"""Between people, models and a terminal: options that several commands read, and characters that may be shown."""

from __future__ import annotations

from collections.abc import Iterable

from chinchilla_lm.core.errors import ConfigError

_CONTROL_PICTURES = 0x2400  # Unicode's block of symbols for the control characters 0 to 31
_SHOWN = {code: chr(_CONTROL_PICTURES + code) for code in range(32) if chr(code) not in "\n\t"}
_SHOWN |= {0x7F: "\u2421"} | {code: "\ufffd" for code in range(0x80, 0xA0)}


def visible(text: str) -> str:
    """Return text whose control characters are signs: a model's words must not steer the terminal (ESC sequences)."""
    return text.translate(_SHOWN)


def read_logit_bias(words: Iterable[str]) -> dict[int, float]:
    """Read `ID=BIAS` words, such as 42=-100.

    Raises:
        ConfigError: a word has another form.
    """
    bias: dict[int, float] = {}
    for word in words:
        token, sign, number = word.partition("=")
        try:
            bias[int(token)] = float(number if sign else "none")
        except ValueError:
            raise ConfigError(f"--logit-bias {word!r} must be TOKEN_ID=BIAS, such as 42=-100 (-100 bans it)") from None
    return bias
