"""Write docs/prompts.md from the template files, so that the page cannot drift; `--check` only compares.

Run: make docs
"""

from __future__ import annotations

import sys
from pathlib import Path

from written_page import write_or_check

from chinchilla_lm.prompt.gallery import prompts_page
from chinchilla_lm.prompt.library_files import library_templates

PAGE = Path(__file__).with_name("prompts.md")


if __name__ == "__main__":
    sys.exit(write_or_check(prompts_page(library_templates()), PAGE))
