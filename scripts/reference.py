"""Writes the pages that come from the code: docs/settings.md and docs/errors.md. `python -m scripts.reference`.

`tests/test_site.py` fails if one of them is old.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from dynamo_fast import config, errors, reasons

DOCS = Path(__file__).resolve().parents[1] / "docs"
WRITTEN = "<!-- Written by `python -m scripts.reference` from {source}: change it there. -->\n"
MIB = 1024 * 1024
NONSENSE = "\0"
"""No parser but that of plain texts accepts it."""


def one_line(text: str) -> str:
    """A docstring as the cell of a table, with links to the pages of the specification."""
    cell = re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
    return re.sub(r"\b((?:transport|runtime|tls|kubernetes|nats|observability|model_card)\.md)(?= \d)", _link, cell)


def _link(match: re.Match[str]) -> str:
    return f"[{match[1]}](spec/{match[1]})"


# Settings -------------------------------------------------------------------------------------------------------------


def explained(cls: type) -> dict[str, str]:
    """Each field of a configuration, and the text below it."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name] = str(node.value.value)
        else:
            name = ""
    return found


def accepted(each: Field[Any]) -> str:
    """What the parser of a setting takes, in its own words."""
    try:
        each.metadata["parse"](NONSENSE)
    except ValueError as words:
        return str(words)
    return "a text"


def default(each: Field[Any]) -> str:
    """The default, as it would stand in the environment."""
    value: Any = each.default
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return "`1`" if value else "`0`"
    if isinstance(value, int) and value >= MIB // 4 and value % (MIB // 4) == 0:
        return f"`{value}` ({value / MIB:g} MiB)"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def groups() -> Iterator[tuple[str, list[str]]]:
    """The groups of configurations, as the docstring of the package has them."""
    for title, names in re.findall(
        r"^    (\w[\w ]*?)  +(\w+Config(?:, \w+Config)*)$", config.__doc__ or "", re.MULTILINE
    ):
        yield title, names.split(", ")


FIELDS = """\
Below each variable stands the field of the configuration that it sets. A program may pass a configuration in its place:
`TcpClientConfig(request_timeout=2.0)`, `ResponseServerConfig.from_env()`. The constructor checks its values as those of the
environment are checked.
"""


def settings() -> str:
    """docs/settings.md."""
    introduction = (config.__doc__ or "").partition("\n\n    ")[0]
    page = [WRITTEN.format(source="dynamo_fast/config"), f"# Settings\n\n{introduction}\n", FIELDS]
    for title, names in groups():
        page.append(f"## {title[0].upper()}{title[1:]}\n")
        for name in names:
            page += configuration(getattr(config, name))
    return "\n".join(page)


def configuration(cls: Any) -> Iterator[str]:
    """One configuration: its heading, its text, and its table."""
    summary, _, rest = (inspect.getdoc(cls) or "").partition("\n\n")
    yield f"### {cls.__name__}\n\n{one_line(summary)}\n" + (f"\n{one_line(rest)}\n" if rest else "")
    yield "| variable | default | accepted | meaning |\n|---|---|---|---|"
    texts = explained(cls)
    for each in fields(cls):
        variable = each.metadata["variable"]
        meaning = one_line(texts.get(each.name, ""))
        yield f"| `{variable}`<br>`{each.name}` | {default(each)} | {one_line(accepted(each))} | {meaning} |"
    yield ""


# Errors ---------------------------------------------------------------------------------------------------------------


def yes(answer: bool) -> str:
    """A cell."""
    return "yes" if answer else "no"


RAISED = """\
# Errors

Everything that this package raises on purpose is a `DynamoError`. In brackets: the exception of Python that an error also
is, so `except TimeoutError` works, too. What to do about each: [troubleshooting](troubleshooting.md).
"""


def failures() -> str:
    """docs/errors.md."""
    _, tree, told, *_ = re.split(r"\n\n(?! )", (errors.__doc__ or "").replace("\n\n    ", "\n\n", 1))
    page = [
        WRITTEN.format(source="dynamo_fast/errors.py and dynamo_fast/reasons.py"),
        RAISED,
        f"```text\n{inspect.cleandoc(tree)}\n```\n",
        f"{told}\n",
        "## Each error\n",
        "| error | `migratable` | `error_type`, `error_class`, `reason` | meaning |\n|---|---|---|---|",
    ]
    page += map(failure, errors_of_the_tree())
    return "\n".join([*page, "", *wire_words()])


def failure(name: str) -> str:
    """The row of an error."""
    cls: type[errors.DynamoError] = getattr(errors, name)
    meaning = one_line((inspect.getdoc(cls) or "").replace("\n\n", " "))
    if cls is errors.RemoteError:
        return f"| `{name}` | as its reason says | the worker's | {meaning} |"
    words = f"`{cls.error_type}`<br>`{cls.error_class}`<br>`{cls.reason}`"
    return f"| `{name}` | {yes(cls.reason in reasons.MIGRATABLE)} | {words} | {meaning} |"


def errors_of_the_tree() -> list[str]:
    """The names in the order of the tree."""
    return re.findall(r"^    [ |]*(?:\+-- )?([A-Z]\w+) ", errors.__doc__ or "", re.MULTILINE)


WIRE = """\
## The words of the wire

Dynamo 1.3 writes `error_type`, Dynamo 1.6 writes all three. A `RemoteError` has those that its worker wrote. A reason that
forbids another worker does so wherever it stands in the chain of causes.
"""


def wire_words() -> Iterator[str]:
    """The words of the wire."""
    yield WIRE
    yield "| `reason` | `error_class` | `error_type` | another worker may be tried |\n|---|---|---|---|"
    known = {words.reason: words for words in (*reasons.BY_CLASS.values(), *reasons.BY_TYPE.values())}
    for reason, words in sorted(known.items()):
        moves = "never" if reason in reasons.NEVER_MIGRATABLE else yes(reason in reasons.MIGRATABLE)
        yield f"| `{reason}` | `{words.error_class}` | `{words.error_type}` | {moves} |"
    yield ""


PAGES = {"settings.md": settings, "errors.md": failures}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
