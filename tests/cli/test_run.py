"""`dynamo-fast run`: a program sees what it sees under Python itself, but for the modules of Dynamo's binding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast.standin import install, stand_in_of
from tests.programs import started

LIMIT = 60

SCRIPT = """
import sys
print(__name__, sys.argv, sys.path[0] != "")
if sys.argv[1:] == ["raise"]:
    raise ValueError("wrong")
sys.exit(int(sys.argv[1]) if sys.argv[1:] else None)
"""
SPAWNING = """
import multiprocessing

def child(results):
    import dynamo.runtime
    results.put(dynamo.runtime.DistributedRuntime.__module__)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=child, args=(results,))
    process.start()
    print(results.get())
    process.join()
    results.close()
"""


def python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, *arguments], folder, environment)


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-m", "dynamo_fast", "run", *arguments], folder, environment)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import sys; print(__name__, sys.argv)", "-m", "--help", "x"],
        ["-c", "import sys; sys.exit('a text')"],
        ["-c", "1/0"],
        ["script.py", "3"],
        ["script.py", "raise"],
        ["-m", "script", "4"],
        ["-m", "no_such_module"],
        ["-m", "json.tool", "--help"],
        ["-W", "error", "-c", "import warnings; warnings.warn('x')"],
        ["no_such_script.py"],
    ],
    ids=" ".join,
)
def test_a_program_behaves_as_under_python(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    expected, got = python(*arguments, folder=tmp_path), run(*arguments, folder=tmp_path)
    assert (got.returncode, got.stdout, got.stderr) == (expected.returncode, expected.stdout, expected.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_it_ends_python(number: signal.Signals, tmp_path: Path) -> None:
    program = "import signal; print('ready', flush=True); signal.pause()"
    statuses = []
    for command in ([], ["-m", "dynamo_fast", "run"]):
        with started([sys.executable, *command, "-c", program], os.environ, tmp_path, subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            statuses.append(process.wait(LIMIT))
    assert statuses[0] == statuses[1] == -number


def test_a_module_and_its_stand_in_are_one(tmp_path: Path) -> None:
    program = (
        "import dynamo.runtime, dynamo_fast.runtime, dynamo.runtime.context, dynamo_fast.runtime.context as ours\n"
        "print(dynamo.runtime is dynamo_fast.runtime, dynamo.runtime.context is ours, ours.__spec__.name)"
    )
    result = run("-c", program, folder=tmp_path)
    assert result.stdout == "True True dynamo_fast.runtime.context\n", result.stderr


def test_the_compiled_module_has_the_names_of_both_packages(tmp_path: Path) -> None:
    program = (
        "from dynamo._core import Context, ModelInput, backend\n"
        "import dynamo._core.backend, dynamo.llm, dynamo.runtime, dynamo_fast.backend, dynamo._core as core\n"
        "print(dynamo._core.backend is backend is dynamo_fast.backend, ModelInput is dynamo.llm.ModelInput)\n"
        "print(Context is dynamo.runtime.Context, {'backend', 'Context', 'ModelInput'} <= set(dir(core)))\n"
        "core.nothing"
    )
    result = run("-c", program, folder=tmp_path)
    assert result.stdout == "True True\nTrue True\n", result.stderr
    assert "AttributeError: module 'dynamo._core' has no attribute 'nothing'" in result.stderr


def test_the_rest_of_dynamo_resolves_to_itself(tmp_path: Path) -> None:
    common = tmp_path / "wheel" / "dynamo" / "common"
    common.mkdir(parents=True)
    (common / "__init__.py").write_text("from dynamo.runtime import DistributedRuntime\n")
    real = tmp_path / "wheel" / "dynamo" / "runtime"
    real.mkdir()
    (real / "__init__.py").write_text("raise ImportError('the real one')\n")
    program = "import dynamo.common as c; print(c.__file__, c.DistributedRuntime.__module__)"
    result = run("-c", program, folder=tmp_path, PYTHONPATH=str(tmp_path / "wheel"))
    assert result.stdout == f"{common / '__init__.py'} dynamo_fast.runtime.distributed\n", result.stderr


def test_a_missing_wheel_is_named(tmp_path: Path) -> None:
    result = run("-m", "dynamo.common.backend.sample_main", folder=tmp_path)
    assert result.returncode == 1
    assert "No module named 'dynamo.common': it is a part of ai-dynamo, which is not installed" in result.stderr
    assert "pip install --no-deps ai-dynamo" in result.stderr


@pytest.mark.parametrize("name", ["dynamo.runtime.no_such_module", "dynamo.no_such_package"])
def test_what_does_not_exist_is_missing_under_its_own_name(name: str, tmp_path: Path) -> None:
    result = run("-c", f"import {name}", folder=tmp_path)
    assert f"ModuleNotFoundError: No module named '{name}'" in result.stderr


def test_the_processes_that_a_program_starts_have_the_stand_ins_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWNING)
    result = run("script.py", folder=tmp_path)
    assert result.stdout == "dynamo_fast.runtime.distributed\n", result.stderr


def test_the_sitecustomize_of_the_environment_is_imported_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    result = run("-c", "import sitecustomize; print(sitecustomize.__file__)", folder=tmp_path, PYTHONPATH=str(tmp_path))
    # Once for the command itself, which is Python, too.
    assert result.stdout == f"mine\nmine\n{tmp_path / 'sitecustomize.py'}\n", result.stderr


def test_without_a_program_it_says_how_it_is_called(tmp_path: Path) -> None:
    result = run(folder=tmp_path)
    assert result.returncode == 2
    assert "no program to run: dynamo-fast run (-m MODULE | -c CODE | SCRIPT)" in result.stderr
    assert "dynamo-fast run (-m MODULE" in run("--help", folder=tmp_path).stdout


def test_it_comes_too_late_once_the_real_binding_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(sys.modules, "dynamo._core", sys)
    with pytest.raises(ImportError, match="dynamo._core is imported already"):
        install()


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("dynamo.runtime", "dynamo_fast.runtime"),
        ("dynamo.llm.exceptions", "dynamo_fast.llm.exceptions"),
        ("dynamo.llmx", None),
        ("dynamo", None),
        ("dynamo.common", None),
    ],
)
def test_only_the_binding_has_stand_ins(name: str, stand_in: str | None) -> None:
    assert stand_in_of(name) == stand_in
