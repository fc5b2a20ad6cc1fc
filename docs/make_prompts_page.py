"""Write docs/prompts.md from the template files, so that the page cannot drift; `--check` only compares.

Run: make docs
"""

from __future__ import annotations

import sys
from pathlib import Path

from chinchilla_lm.prompt.gallery import prompts_page
from chinchilla_lm.prompt.library_files import library_templates

PAGE = Path(__file__).with_name("prompts.md")


def main() -> int:
    """Write or check the page; return the exit code."""
    page = prompts_page(library_templates())
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
