"""Between people, models and a terminal: options that several commands read, and characters that may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cyclopts import Parameter

from chinchilla_lm.core.errors import ConfigError

if TYPE_CHECKING:
    from chinchilla_lm.generate.sampling import Sampling

_CONTROL_PICTURES = 0x2400  # Unicode's block of symbols for the control characters 0 to 31
_SHOWN = {code: chr(_CONTROL_PICTURES + code) for code in range(32) if chr(code) not in "\n\t"}
_SHOWN |= {0x7F: "\u2421"} | {code: "\ufffd" for code in range(0x80, 0xA0)}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the rules are those of `generate.sampling`."""

    temperature: float = 0.8
    """0 takes the most likely token; 1 draws as the model says."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach p; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens with at least this fraction of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1 tokens of the text so far become less likely."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the answer has already; -2 to 2."""
    frequency_penalty: float = 0.0
    """The same for every time they occur; -2 to 2."""
    logit_bias: tuple[str, ...] = ()
    """TOKEN_ID=BIAS, -100 to 100; give it again for more."""
    seed: int = 0
    """The same seed and the same words give the same text."""

    def sampling(self) -> Sampling:
        """Return the rule.

        Raises:
            ConfigError: a value out of its range.
        """
        from chinchilla_lm.generate.sampling import Sampling  # torch takes seconds to import

        return Sampling(**{**asdict(self), "logit_bias": read_logit_bias(self.logit_bias)})


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
