"""Text to the units that overlap measures count: words, and single characters where a script has no spaces."""

from __future__ import annotations

import re

# Han with its extensions and compatibility forms, kana, Thai, Lao, Khmer, Burmese: written without spaces between
# words. Hangul has them.
_UNSPACED = (
    "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNITS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}_]+")


def split_units(text: str) -> list[str]:
    """Return lower-case words and single characters of scripts without spaces, punctuation left out."""
    return _UNITS.findall(text.lower())


def base_language(language: str) -> str:
    """Return "zh" of "zh-CN", "zh_Hans" or "ZH"."""
    return re.split("[-_]", language.lower())[0]
