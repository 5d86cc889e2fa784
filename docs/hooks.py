"""What mkdocs puts into pages while it builds the site: the flags of every command."""

import io
from contextlib import redirect_stdout, suppress
from typing import Any

from torch_crl.cli.main import COMMANDS, main

_MARK = "<!-- flags of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with the text of each page."""
    if _MARK not in markdown:
        return markdown
    return markdown.replace(_MARK, "\n".join(map(_section, COMMANDS)))


def _section(command: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        main([command, "--help"])
    return f"## {command}\n\n```text\n{shown.getvalue().strip()}\n```\n"
