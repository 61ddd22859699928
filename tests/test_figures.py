"""The figures in the documents are those that the benchmark wrote."""

from __future__ import annotations

import pytest

from benchmarks import report

TABLES = report.tables(report.FIGURES)
TEXT = "".join(page.read_text(encoding="utf-8") for page in report.PAGES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_in_the_documents_as_it_was_measured(name: str) -> None:
    (written,) = report.between(name).findall(TEXT)
    assert written == TABLES[name], "write it again: python -m benchmarks.report"
