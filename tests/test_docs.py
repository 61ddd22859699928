"""The examples of the documentation are run as they stand there."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from dynamo_fast.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"
OPTIONS = doctest.ELLIPSIS


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_of_the_wire_protocol() -> None:
    text = "\n".join(blocks("wire-protocol.md", "pycon"))
    examples = doctest.DocTestParser().get_doctest(text, {}, "wire-protocol.md", "wire-protocol.md", 0)
    assert len(examples.examples) > 40
    told: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(examples, out=told.append)
    assert not told, "".join(told)


def test_the_commands_of_the_wire_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    (console,) = blocks("wire-protocol.md", "console")
    shown = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", console, re.MULTILINE)
    assert len(shown) > 1
    for command, output in shown:
        program, *arguments = shlex.split(command)
        assert program == "dynamo-fast"
        main(arguments)
        assert capsys.readouterr().out == output


@pytest.mark.parametrize("page", sorted(page.name for page in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (DOCS / target.partition("#")[0]).exists(), target
