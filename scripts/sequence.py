"""Draws a sequence diagram of Mermaid as SVG. GitHub draws the same text itself; the site fetches no program for it.

What is understood: `participant ID as NAME`, `A->>B: text`, `A-->>B: text`, `Note over A,B: text`, and `loop`, `alt`,
`else`, `end`.
"""

from __future__ import annotations

import re
from html import escape

__all__ = ["draw"]

LANE, ROW, MARGIN, TOP = 460, 34, 150, 56
FONT = 'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14" fill="currentColor"'
LINE = 'stroke="currentColor" stroke-width="1.3" fill="none"'


class Drawing:
    """One diagram while it is drawn, from the top down. `draw` makes it and asks for its text at the end."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.y = TOP
        self.parts: list[str] = []
        self.open: list[tuple[int, str]] = []

    def at(self, who: str) -> int:
        """The place of a participant, from the left."""
        return MARGIN + list(self.names).index(who) * LANE

    def text(self, x: float, y: float, words: str, anchor: str = "middle", weight: str = "normal") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" {FONT}>{escape(words)}</text>'
        )

    def message(self, sender: str, dashed: str, receiver: str, words: str) -> None:
        """An arrow with its text above it."""
        self.y += ROW
        start, end = self.at(sender), self.at(receiver)
        way = 1 if end > start else -1
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(f'<path d="M{start} {self.y}H{end - way}" {LINE}{dash}/>')
        self.parts.append(
            f'<path d="M{end - way * 10} {self.y - 5}L{end} {self.y}L{end - way * 10} {self.y + 5}" {LINE}/>'
        )
        self.text((start + end) / 2, self.y - 7, words)

    def note(self, over: str, words: str) -> None:
        """A text in a box, over one participant or between several."""
        self.y += ROW + 6
        places = [self.at(who.strip()) for who in over.split(",")]
        middle, width = sum(places) / len(places), len(words) * 8.5 + 20
        self.parts.append(
            f'<rect x="{middle - width / 2:g}" y="{self.y - 20}" width="{width:g}" height="28" rx="4" '
            'fill="#76b900" fill-opacity="0.16" stroke="none"/>'
        )
        self.text(middle, self.y - 1, words)
        self.y += 4

    def block(self, kind: str, words: str) -> None:
        """The beginning of a block, or of its next case."""
        self.y += ROW
        if kind == "else":
            right = MARGIN * 2 + LANE * (len(self.names) - 1) - 10
            self.parts.append(f'<path d="M10 {self.y - 16}H{right}" {LINE} stroke-dasharray="3 4" opacity="0.6"/>')
        else:
            self.open.append((self.y - 16, kind))
        self.text(20, self.y + 2, f"{kind} {words}".rstrip(), "start", "bold")

    def end(self) -> None:
        """The end of the block that was begun last."""
        self.y += ROW // 2
        top, _ = self.open.pop()
        width = MARGIN * 2 + LANE * (len(self.names) - 1) - 20
        self.parts.append(
            f'<rect x="10" y="{top}" width="{width}" height="{self.y - top}" rx="4" {LINE} opacity="0.6"/>'
        )

    def svg(self) -> str:
        """The whole picture, on one line each element."""
        width, height = MARGIN * 2 + LANE * (len(self.names) - 1), self.y + ROW
        head = [f'<path d="M{self.at(who)} {TOP - 14}V{height - 8}" {LINE} opacity="0.5"/>' for who in self.names]
        for who, name in self.names.items():
            head.append(f'<rect x="{self.at(who) - 60}" y="8" width="120" height="34" rx="5" {LINE}/>')
            head.append(
                f'<text x="{self.at(who)}" y="30" text-anchor="middle" font-weight="bold" {FONT}>{escape(name)}</text>'
            )
        label = escape(" and ".join(self.names.values()))
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        )
        return "".join([opening, *head, *self.parts, "</svg>"])


def draw(source: str) -> str:
    """The picture of a diagram. Raises ValueError, with the line, for what is not understood."""
    lines = [line.strip() for line in source.strip().splitlines()]
    if lines[0] != "sequenceDiagram":
        raise ValueError(f"{lines[0]!r}: only a sequenceDiagram is drawn")
    drawing = Drawing()
    for line in lines[1:]:
        if found := re.fullmatch(r"participant (\w+) as (.+)", line):
            drawing.names[found[1]] = found[2]
        elif found := re.fullmatch(r"(\w+)-(-?)>>(\w+): (.+)", line):
            drawing.message(*found.groups())
        elif found := re.fullmatch(r"Note over ([\w, ]+): (.+)", line):
            drawing.note(found[1], found[2])
        elif found := re.fullmatch(r"(loop|alt|else)\b ?(.*)", line):
            drawing.block(found[1], found[2])
        elif line == "end":
            drawing.end()
        else:
            raise ValueError(f"{line!r}: this line of a sequence diagram is not understood")
    return drawing.svg()
