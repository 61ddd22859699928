"""Each reference to the specification, and each link in it, leads to something that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "docs" / "spec"
PAGES = {page.name: page for page in sorted(SPEC.glob("*.md"))}
SOURCES = [
    path
    for folder in ("dynamo_fast", "tests", "benchmarks", "docs")
    for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi", "*.md")
    for path in sorted((ROOT / folder).rglob(pattern))
    if path != Path(__file__)
]
#: `transport.md 4.3`, `transport.md 2 and 6.1`, `runtime.md 6.1 to 6.3`, `runtime.md section 3`
REFERENCE = re.compile(r"\b([a-z_]+\.md) (?:sections? )?(\d+(?:\.\d+)*(?:(?:, | and | to )\d+(?:\.\d+)*)*)")


def sections(page: Path) -> set[str]:
    """The numbers of its headings."""
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*)\.? ", page.read_text(encoding="utf-8"), re.MULTILINE))


def references(path: Path) -> Iterator[tuple[str, str]]:
    """Each page and section that a file names."""
    text = path.read_text(encoding="utf-8")
    for page, numbers in REFERENCE.findall(text):
        for number in re.findall(r"\d+(?:\.\d+)*", numbers):
            yield page, number


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_section_that_is_named_exists(path: Path) -> None:
    for page, number in references(path):
        assert page in PAGES, f"{page} {number}: there is no docs/spec/{page}"
        assert number in sections(PAGES[page]), f"docs/spec/{page} has no section {number}"


def test_the_pattern_finds_the_references() -> None:
    found = [reference for path in SOURCES for reference in references(path)]
    assert len(found) > 60
    assert ("transport.md", "4.9") in found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_or_names_as_a_recording_exists(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        assert "://" in target or (SPEC / target).exists(), target
    for name in re.findall(r"`((?:planes|model_card)/[^`\s]*)`", text):
        pattern = re.sub(r"\{([^}]*)\}", "*", name)
        assert list(SPEC.glob(pattern.rstrip("/"))), name
