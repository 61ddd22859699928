"""Hooks of mkdocs (`hooks` in mkdocs.yml): what of the repository is on the site beside docs/, and under which name.

The pages link to each other and to other files of the repository as GitHub does. On the site the files of `PAGES` are
pages, and every other file that a page links to is a download under files/.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts import sequence

DOCS = "docs/"
PAGES = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "vulnerabilities.md"}
"""File of the repository -> page of the site."""
BOOSTS = {
    r"spec/|performance|changelog|compatibility": 0.2,
    r"reference/|scaling|conformance": 0.7,
    r"settings|errors": 1.3,
    r"install|quickstart|calling|workers|models|fastapi|gateway|codec|deploy|troubleshooting|contributing": 2,
}
"""Pages -> how much more a word in them counts in a search: guides come before what was measured and specified."""
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that stand outside of docs/, and the files that pages link to."""
    root = Path(config.docs_dir).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    for page in files.documentation_pages():
        for _, target, _ in LINK.findall(page.content_string):
            path = _in_repository(page, target)
            if path and not path.startswith(DOCS) and path not in PAGES:
                if not (root / path).is_file():
                    raise PluginError(f"{page.src_uri} links to {target}, which is not a file of the repository")
                if f"files/{path}" not in files.src_uris:
                    files.append(File.generated(config, f"files/{path}", abs_src_path=str(root / path)))


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Draw the diagrams, and point the links that leave docs/ to where the site has their targets."""
    boosts = [boost for pages, boost in BOOSTS.items() if re.match(pages, page.file.src_uri)]
    page.meta["search"] = {"boost": boosts[0] if boosts else 1}

    def there(link: re.Match[str]) -> str:
        path = _in_repository(page.file, link[2])
        if path is None:
            return link[0]
        target = path.removeprefix(DOCS) if path.startswith(DOCS) else PAGES.get(path, f"files/{path}")
        return link[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".") + link[3]

    drawn = DIAGRAM.sub(lambda block: f'<div class="diagram">{sequence.draw(block[1])}</div>', markdown)
    return LINK.sub(there, drawn)


def _in_repository(page: File, target: str) -> str | None:
    """The path in the repository of what a page links to; None for a link that leaves it."""
    if "://" in target or target.startswith("mailto:"):
        return None
    names = {name: source for source, name in PAGES.items()}
    folder = posixpath.dirname(names.get(page.src_uri, DOCS + page.src_uri))
    return posixpath.normpath(posixpath.join(folder, target))
