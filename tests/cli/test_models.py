"""`dynamo-fast serve --model` and `dynamo-fast models`: real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_main import run, settings
from tests.llm.folders import make_folder
from tests.programs import started


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "engine.py").write_text("async def generate(request):\n    yield request\n")
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:generate", *options]
    with started(command, {**settings(folder), **environment}, folder, stderr=subprocess.PIPE) as process:
        yield process


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def models(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "models", *options)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny")


def test_a_model_is_served_and_listed(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path, "--model", str(tiny)) as process:
        first, second = lines(process, 2)
        assert first.startswith("serving dynamo.backend.generate at 127.0.0.1:")
        assert second == "model tiny"
        done = models(tmp_path)
        (line,) = done.stdout.splitlines()
        number = line.split("  ")[2]
        assert line == f"tiny  dynamo.backend.generate  {number}  Chat | Completions  Tokens"
        assert (done.returncode, done.stderr) == (0, "")
        (found,) = map(json.loads, models(tmp_path, "--json").stdout.splitlines())
        assert (found["key"], found["problems"]) == (f"dynamo/backend/generate/{number}", [])
        assert found["record"]["card_json"]["display_name"] == "tiny"
        process.terminate()
        assert process.wait(20) == 0
    gone = models(tmp_path)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("dynamo-fast models: error: no model (discovery: file, ")


def test_a_model_of_text_needs_no_folder(tmp_path: Path) -> None:
    with serving(tmp_path, "--text", "--name", "my model", "--endpoint", "a.b.c") as process:
        lines(process, 2)
        (line,) = models(tmp_path).stdout.splitlines()
        assert line.startswith("my model  a.b.c  ")
        assert line.endswith("  Chat | Completions  Text")


def test_what_is_wrong_is_said(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path, "--model", str(tiny), "--name", "a") as process:
        lines(process, 2)
        (tiny / "tokenizer.json").unlink()
        (tiny / "tokenizer_config.json").write_text("{ }")
        (tiny / "config.json").write_text((tiny / "config.json").read_text() + " ")
        (instance,) = (tmp_path / "v1" / "instances").iterdir()
        assert models(tmp_path).stdout.splitlines()[1:] == [
            f"    model_info: file too long: {tiny}/config.json has more than the "
            f"{(tiny / 'config.json').stat().st_size - 1} bytes of the card",
            f"    tokenizer: file missing: {tiny}/tokenizer.json",
            f"    prompt_formatter: checksum differs: {tiny}/tokenizer_config.json",
        ]
        record = json.loads(run(tmp_path, "models", "--json").stdout)["record"]
        folder = tmp_path / "v1" / "mdc"

        def put(name: str, content: object) -> None:
            (folder / name).write_text(json.dumps(content))

        put("x%2Fy%2Fz%2F7", {**record, "namespace": "x", "component": "y", "endpoint": "z", "instance_id": 7})
        put("x%2Fy%2Fz%2F8", {**record, "namespace": "x", "component": "y", "endpoint": "z", "instance_id": 9})
        put("x%2Fy%2Fz%2Fa", {**record, "card_json": {**record["card_json"], "slug": "A"}})
        changed = {**record["card_json"], "kv_cache_block_size": 17, "tokenizer": None}
        elsewhere = {**record["card_json"], "kv_cache_block_size": 18}
        put(
            "dynamo%2Fx%2Fy%2F5",
            {**record, "component": "x", "endpoint": "y", "instance_id": 5, "card_json": elsewhere},
        )
        put("dynamo%2Fbackend%2Fgenerate%2Fb", {**record, "instance_id": 11, "card_json": changed})
        adapter = {**record["card_json"], "display_name": "l", "lora": {"name": "l"}}
        put("dynamo%2Fz%2Fy%2F5", {**record, "component": "z", "endpoint": "y", "instance_id": 5, "card_json": adapter})
        done = models(tmp_path)
        assert done.returncode == 1
        text = done.stdout
        assert text.count("card without instance") == 5
        assert "the content belongs to the key x/y/z/9" in text
        assert "x/y/z/a  unreadable\n    not a model's record: `slug` has 'A': expected a-z, 0-9, '_' and '-'" in text
        assert "another card than the instance b of this endpoint" in text
        assert f"another card than the instance {record['instance_id']:x} of this endpoint" in text
        assert "another card than dynamo/x/y: a frontend of Dynamo 1.3 refuses the second" in text
        assert "lora and model_suffix disagree" in text
        assert "tokenizer is missing: the frontend makes tokens with it" in text
        assert instance.exists()


def test_files_at_a_worker_are_fetched(tmp_path: Path, tiny: Path) -> None:
    hosting = {"DYN_SYSTEM_HOST": "127.0.0.1", "DYN_SYSTEM_PORT": "0"}
    with serving(tmp_path, "--model", str(tiny), **hosting) as process:
        assert lines(process, 3)[2].startswith("status at http://127.0.0.1:")
        assert models(tmp_path).returncode == 0
        (tiny / "tokenizer.json").unlink()
        (line,) = models(tmp_path).stdout.splitlines()[1:]
        assert line.startswith("    tokenizer: file missing: http://127.0.0.1:")
        (record,) = (json.loads(each)["record"] for each in models(tmp_path, "--json").stdout.splitlines())
        process.terminate()
        process.wait(20)
    (tmp_path / "v1" / "mdc" / "left%2F1").write_text(json.dumps(record))
    assert models(tmp_path).stdout.count("file cannot be read: http://127.0.0.1:") == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--model", "nowhere"], "dynamo-fast serve: error: the model nowhere does not exist: expected a local folder"),
        (["--model", "bad"], "dynamo-fast serve: error: .*/bad/config.json is no JSON"),
        (["--model", "bare"], "dynamo-fast serve: error: .*/bare has no tokenizer"),
    ],
    ids=str,
)
def test_a_bad_folder_is_one_line(tmp_path: Path, options: list[str], error: str) -> None:
    make_folder(tmp_path / "bad", {"config.json": "{no"})
    make_folder(tmp_path / "bare", {"tokenizer.json": None})
    with serving(tmp_path, *options) as process:
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert re.search(error, line), line
    assert not (tmp_path / "v1" / "mdc").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--text"], "--text needs the name of the model"),
        (["--name", "x", "--endpoint", "a.b.c"], "--name is the name of a model: give --model PATH, or --text, too"),
        ([], "--endpoint is missing"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_show_the_use(tmp_path: Path, options: list[str], error: str) -> None:
    done = run(tmp_path, "serve", "json:dumps", *options)
    assert done.returncode == 2
    assert error in done.stderr
