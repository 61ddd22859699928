"""The site of the documentation: it builds without a warning, fetches nothing, and has what the code has."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

import dynamo_fast
from dynamo_fast import config
from scripts import reference, sequence

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DIAGRAMS = [
    diagram
    for page in sorted(DOCS.rglob("*.md"))
    for diagram in re.findall(r"^```mermaid\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
]
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links between folders need rights on Windows")
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="no mkdocs-material: pip install -e '.[docs]'",
)


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder), *options]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@needs_mkdocs
def test_each_page_is_built(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")]
    names = {"index.html" if page.name == "README.html" else page.as_posix() for page in pages}
    assert not [
        name for name in sorted(names | {"changelog.html", "vulnerabilities.html"}) if not (site / name).exists()
    ]


@needs_mkdocs
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
    assert not [page.name for page in site.rglob("*.html") if fetched.search(page.read_text(encoding="utf-8"))]
    imports = re.compile(r"""@import|url\(["']?(?:https?:)?//""")
    assert not [sheet.name for sheet in site.rglob("*.css") if imports.search(sheet.read_text(encoding="utf-8"))]


@needs_mkdocs
def test_the_files_that_pages_link_to_are_downloads(site: Path) -> None:
    assert (site / "files/deploy/systemd/my-engine.service").read_text() == (
        ROOT / "deploy/systemd/my-engine.service"
    ).read_text()
    assert 'href="files/deploy/systemd/my-engine.service"' in (site / "deploy.html").read_text(encoding="utf-8")


def tree(folder: Path, home: str) -> Path:
    """A small repository of few pages, with the hooks and the settings of the real one; returns its settings."""
    (folder / "docs" / "figures").mkdir(parents=True)
    for name in ("CHANGELOG.md", "SECURITY.md"):
        (folder / name).write_text("# A page\n", encoding="utf-8")
    (folder / "docs" / "install.md").write_text("# Install\n", encoding="utf-8")
    (folder / "docs" / "README.md").write_text(f"# Home\n\n{home}\n", encoding="utf-8")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "dynamo_fast").symlink_to(ROOT / "dynamo_fast")
    settings = folder / "mkdocs.yml"
    before_nav, _, _ = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    pages = ("README.md", "install.md", "changelog.md", "vulnerabilities.md")
    settings.write_text("\n".join([before_nav, "nav:", *(f"  - {page}" for page in pages), ""]), encoding="utf-8")
    return settings


@needs_links
@needs_mkdocs
def test_a_page_without_a_place_fails_the_build(tmp_path: Path) -> None:
    settings = tree(tmp_path, "")
    (tmp_path / "docs" / "orphan.md").write_text("# A page\n", encoding="utf-8")
    done = build(tmp_path / "site", "--config-file", str(settings))
    assert done.returncode != 0
    assert "orphan.md" in done.stderr


@needs_links
@needs_mkdocs
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](install.md#nowhere)", "nowhere"),
        ("[x](../nowhere.txt)", "nowhere.txt"),
        ("::: dynamo_fast.Nowhere", "Nowhere"),
        ("", ""),
    ],
)
def test_a_fault_of_a_page_fails_the_build(fault: str, told: str, tmp_path: Path) -> None:
    done = build(tmp_path / "site", "--config-file", str(tree(tmp_path, fault)))
    assert (done.returncode != 0) == bool(fault), done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_page_that_comes_from_the_code_is_as_the_code_is(page: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == reference.PAGES[page](), "write it again: python -m scripts.reference"


def test_each_setting_is_explained() -> None:
    configurations = [getattr(config, name) for name in config.__all__ if name.endswith("Config")]
    page = reference.settings()
    for each in configurations:
        missing = {setting.name for setting in fields(each)} - reference.explained(each).keys()
        assert not missing, f"{each.__name__} has no text below {missing}"
        assert f"\n### {each.__name__}\n" in page, "the docstring of dynamo_fast.config leaves it out"


def test_each_error_is_on_its_page() -> None:
    assert set(reference.errors_of_the_tree()) == set(dynamo_fast.errors.__all__)


def test_each_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    public = {name: getattr(dynamo_fast, name) for name in dynamo_fast.__all__ if name != "DynamoError"}
    named = {f"dynamo_fast.{name}" for name, value in public.items() if not isinstance(value, ModuleType)}
    assert not named - shown, "write `::: NAME` on a page of docs/reference"
    assert not {f"dynamo_fast.llm.{name}" for name in ("ModelCard", "KvEventSource", "LoadSource")} - shown


def test_each_diagram_is_drawn() -> None:
    assert len(DIAGRAMS) > 2
    for diagram in DIAGRAMS:
        assert sequence.draw(diagram).startswith("<svg ")


@pytest.mark.parametrize("line", ["participant R", "R=>W: text", "opt text"])
def test_a_line_that_is_not_drawn_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(line))):
        sequence.draw(f"sequenceDiagram\n    {line}\n")
