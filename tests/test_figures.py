"""The figures in the documents are those that the benchmark wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report

FIGURES = Path("docs/figures")
PAGE = Path("docs/performance.md").read_text(encoding="utf-8")
README = Path("README.md").read_text(encoding="utf-8")


def test_what_was_aimed_at_is_in_the_page_as_it_was_measured() -> None:
    for line in report.aims([FIGURES]).splitlines():
        cells = line.rpartition(" | ")[0] or line  # the last cell of the page's lines has more runs than this one
        assert cells in PAGE, line


@pytest.mark.parametrize(
    ("part", "title"), [(part, title) for part, titles in report.GRIDS.items() for title in titles]
)
def test_a_table_is_in_the_page_as_it_was_measured(part: str, title: str) -> None:
    assert report.grid(FIGURES, part, title) in PAGE


def test_the_readme_says_the_same() -> None:
    in_readme = [line for line in README.splitlines() if line.startswith(("| caller,", "| worker,", "| both ends,"))]
    assert len(in_readme) >= 8
    measured = report.aims([FIGURES]).splitlines()
    for line in in_readme:
        assert any(each.startswith(line.removesuffix(" |")) for each in measured), line
