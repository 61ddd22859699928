"""The examples of the documentation are run as they stand there."""

from __future__ import annotations

import ast
import asyncio
import doctest
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import amplification
from dynamo_fast.cli.main import main
from scripts.architecture import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(ROOT) for folder in (ROOT, DOCS, ROOT / "examples") for page in folder.glob("*.md"))
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


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs"], ids=str)
def test_the_programs_of_a_page_are_run_by_a_test(page: Path) -> None:
    """At least, some test names the page; the tests run each block that they find there."""
    if re.search(r"^```py(?:thon|con)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
        tests = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
        assert any(page.name in text for text in tests), "no test runs the examples of this page"


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            file = (ROOT / page.parent / path) if path else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in headings(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_are_settings_of_the_package(page: Path) -> None:
    named = set(
        re.findall(r"`((?:DYN|DYNAMO_FAST|ETCD)_[A-Z0-9_]*[A-Z0-9])\b", (ROOT / page).read_text(encoding="utf-8"))
    )
    files = [*(ROOT / "dynamo_fast").rglob("*.py"), ROOT / "setup.py"]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert not [name for name in sorted(named) if not re.search(rf"\b{name}\b", source)]


def test_the_tests_of_the_threat_model_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", (DOCS / "threat-model.md").read_text(encoding="utf-8")))
    assert len(named) > 15
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def test_decoding_takes_no_more_memory_than_the_threat_model_says() -> None:
    text = (DOCS / "threat-model.md").read_text(encoding="utf-8")
    for name, decode, data in amplification.cases():
        row = re.search(rf"^\| {re.escape(name)} \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
        assert row is not None, f"no row for {name!r}: python -m benchmarks.amplification"
        measured = amplification.measure(decode, data)
        most = [int(told) * 1.25 + 1 for told in row.groups()]  # another Python's objects differ a little
        assert measured.kept < most[0], name
        assert measured.peak < most[1], name


def backticked(page: str) -> set[str]:
    """What stands between backticks in a page, outside of its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize(("page", "least"), [("architecture.md", 50), ("contributing.md", 8)])
def test_paths_exist(page: str, least: int) -> None:
    extensions = (".py", ".pyx", ".md", ".svg", ".json", ".toml")
    folders = ("tests/", "docs/", "benchmarks/", "scripts/", "dynamo_fast/")
    paths = {each for each in backticked(page) if each.endswith(("/", *extensions)) or each.startswith(folders)}
    assert len(paths) >= least
    package = ROOT / "dynamo_fast"
    assert not [path for path in sorted(paths) if not ((ROOT / path).exists() or (package / path).exists())]


def test_methods_of_the_architecture_exist() -> None:
    named = {each for each in backticked("architecture.md") if re.fullmatch(r"[A-Z]\w+\.[a-z_]+", each)}
    assert len(named) > 8
    defined = set()
    for path in (ROOT / "dynamo_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
    assert not named - defined


def test_the_floors_of_the_architecture_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [set(re.findall(r"\w+", row)) for row in rows] == [set(floor) for floor in FLOORS]


def python_of_the_codec() -> list[dict[str, Any]]:
    """The names that each example of the page on the codec defines."""
    found = []
    for source in blocks("codec.md", "python"):
        names: dict[str, Any] = {}
        exec(source, names)
        found.append(names)
    return found


async def test_the_codec_of_the_guide_takes_the_place_of_the_one_by_hand() -> None:
    """Both read what both wrote, cut where the reads cut it."""
    first, by_hand, ours, ping, views = python_of_the_codec()
    assert (first["header"], first["data"]) == (b'{"id":1}', b"some data")
    assert type(views["message"].data) is memoryview
    sent = [(b"", b""), (b"h", b"d" * 70_000), (b"head", b"")] * 50
    for writer in (by_hand, ours):
        stream = b"".join(writer["encode"](*each) for each in sent)
        for reader in (by_hand, ours):
            assert [each async for each in reader["messages"](stream_of(stream))] == sent
    with pytest.raises(EOFError, match="the stream ends 10 bytes into a message"):
        _ = [each async for each in ours["messages"](stream_of(ours["encode"](b"", b"x")[:10]))]
    written = io.BytesIO()

    class Writer:
        write = written.write

        async def drain(self) -> None:
            pass

    assert await ping["ping"](stream_of(by_hand["encode"](b"pong", b"")), Writer()) == b"pong"
    assert written.getvalue() == by_hand["encode"](b"ping", b"")


def stream_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader
