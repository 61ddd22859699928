"""`diagnose`: the model cards in discovery, and why a frontend would not serve one of them."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.discovery.store import Record
from dynamo_fast.errors import InvalidConfig, PayloadError
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import CardFile, ModelRecord, checksum
from dynamo_fast.wire.text import printable

__all__ = ["Finding", "diagnose"]

_MAX_FILE = 256 * 1024 * 1024
_FETCH_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One record of the bucket of model cards."""

    key: str
    content: bytes
    record: ModelRecord | None
    """None if a frontend cannot read it."""
    problems: list[str]
    """What is wrong with it, a line for each; empty if a frontend serves it."""


async def diagnose(discovery: Discovery) -> list[Finding]:
    """Every model card, in the order of the keys. Reads the files that the cards name; fetches what a URL of http names.

    Raises what the store raises.
    """
    records = await discovery.store.bucket(MODEL_CARDS).list()
    instances = {_key(instance) for instance in await discovery.list()}
    found = [_read(record) for record in records]
    files: dict[CardFile, list[str]] = {}
    for finding in found:
        if finding.record is not None:
            finding.problems.extend(_problems(finding.record, finding.key, instances, found))
            for field, file in finding.record.card.files():
                if file not in files:
                    files[file] = await asyncio.to_thread(_file_problems, file)
                finding.problems.extend(f"{field}: {problem}" for problem in files[file])
    return found


def _read(record: Record[bytes]) -> Finding:
    try:
        return Finding(record.key, record.value, ModelRecord.decode(record.value), [])
    except PayloadError as error:
        return Finding(record.key, record.value, None, [str(error)])


def _problems(record: ModelRecord, key: str, instances: set[str], found: Sequence[Finding]) -> list[str]:
    problems = record.faults()
    if record.key != key:
        problems.append(f"the content belongs to the key {record.key}")
    if f"{record.endpoint_id}/{record.instance_id:x}" not in instances:
        problems.append("card without instance")
    problems += _conflicts(record, found)
    return problems


def _conflicts(record: ModelRecord, found: Sequence[Finding]) -> list[str]:
    """The records that have another card of the same model: a frontend refuses all but the first."""
    problems = []
    for other in (each.record for each in found):
        if other is None or other.key == record.key or not other.must_match(record):
            continue
        try:
            if other.card.mdc_sum() == record.card.mdc_sum():
                continue
        except InvalidConfig as error:
            return [f"not compared with other cards: {error}"]
        if other.endpoint_id == record.endpoint_id:
            problems.append(f"another card than the instance {other.instance_id:x} of this endpoint")
        else:
            problems.append(f"another card than {other.endpoint_id}: a frontend of Dynamo 1.3 refuses the second")
    return problems


def _file_problems(file: CardFile) -> list[str]:
    shown = printable(file.path)
    try:
        content = _content(file)
    except FileNotFoundError:
        return [f"file missing: {shown}"]
    except (OSError, ValueError) as error:
        return [f"file cannot be read: {shown}: {printable(str(error))}"]
    if content is None:
        return []
    if file.size is not None and len(content) > file.size:
        return [f"file too long: {shown} has more than the {file.size} bytes of the card"]
    try:
        return [] if checksum(content) == file.checksum else [f"checksum differs: {shown}"]
    except InvalidConfig as error:
        return [f"checksum not compared: {error}"]


def _content(file: CardFile) -> bytes | None:
    """The content of a local file, or of a URL of http; None for a URL of another kind, which is not checked."""
    url = urlsplit(file.path)
    limit = _MAX_FILE if file.size is None else min(file.size, _MAX_FILE)
    if url.scheme in {"http", "https"}:
        try:
            with urllib.request.urlopen(file.path, timeout=_FETCH_SECONDS) as answer:  # noqa: S310  # http or https
                fetched: bytes = answer.read(limit + 1)
                return fetched
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                raise FileNotFoundError(file.path) from None
            raise
    if "://" in file.path and url.scheme != "file":
        return None
    with Path(unquote(url.path) if url.scheme == "file" else file.path).open("rb") as opened:
        return opened.read(limit + 1)


def _key(instance: Instance) -> str:
    return f"{instance.endpoint_id}/{instance.instance_id:x}"
