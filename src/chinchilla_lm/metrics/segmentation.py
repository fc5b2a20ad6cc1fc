"""Text to the units that overlap measures count: words, and single characters where a script has no spaces."""

from __future__ import annotations

import functools
import re
import unicodedata

# Han with its extensions and compatibility forms, kana, Thai, Lao, Khmer, Burmese: written without spaces between
# words. Hangul has them.
_UNSPACED = (
    "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_LAST_WITH_MARKS = 0x1FFFF


def split_units(text: str) -> list[str]:
    """Return lower-case words and single characters of scripts without spaces, punctuation left out."""
    return _units().findall(text.lower())


@functools.cache
def _units() -> re.Pattern[str]:
    r"""Vowel signs and accents that combine, which \w lacks, are parts of their word (Hindi, Arabic, NFD)."""
    marks = "".join(chr(code) for code in range(0x300, _LAST_WITH_MARKS) if unicodedata.category(chr(code))[0] == "M")
    spaced_marks = re.sub(f"[{_UNSPACED}]", "", marks)
    letter = rf"[^\W{_UNSPACED}_]"
    return re.compile(rf"[{_UNSPACED}]|{letter}+(?:[{spaced_marks}]+{letter}*)*")


def base_language(language: str) -> str:
    """Return "zh" of "zh-CN", "zh_Hans" or "ZH"."""
    return re.split("[-_]", language.lower())[0]
