"""Draw what a command shows on a terminal, in its colours: `python scripts/terminal_picture.py OUT.svg TITLE < OUTPUT`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    out, title = sys.argv[1:]
    console = Console(record=True, width=118, force_terminal=True, file=sys.stderr)
    for line in sys.stdin.read().splitlines():
        text = Text.from_ansi(line)
        text.truncate(117, overflow="ellipsis")
        console.print(text, highlight=False, no_wrap=True)
    svg = console.export_svg(title=title, unique_id="terminal")
    # A picture fetches nothing: the fonts are those that the reader has.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


main()
