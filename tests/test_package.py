"""The package's own names: what an import of it loads, and what it offers."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dynamo_fast
from dynamo_fast import config, testing
from dynamo_fast.config.backend import VARIABLE, backend
from dynamo_fast.errors import InvalidConfig

LOADED = """
import json, sys
before = {{*sys.modules}}
import {module}
print(json.dumps([name.partition(".")[0] for name in sys.modules.keys() - before]))
"""
LAZY = [dynamo_fast, config, testing]


def loaded_by(module: str) -> set[str]:
    """The packages and modules of the first level that an import of `module` alone brings."""
    # Without the site: what is installed may load modules at the start of each program.
    environment = {**os.environ, "PYTHONPATH": str(Path(dynamo_fast.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", LOADED.format(module=module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["dynamo_fast", "dynamo_fast.codec", "dynamo_fast.errors"])
def test_the_codec_alone_needs_only_the_standard_library_and_little_of_it(module: str) -> None:
    loaded = loaded_by(module)
    # What is compiled brings modules that Cython makes, with no file of their own.
    assert {name for name in loaded - sys.stdlib_module_names if "cython" not in name} == {"dynamo_fast"}
    heavy = {"asyncio", "dataclasses", "inspect", "ipaddress", "logging", "platform", "socket", "ssl", "urllib"}
    assert loaded & heavy == set()


def test_the_clock_of_tests_needs_no_requirement_of_the_package() -> None:
    """So the tests of the codec run where nothing else of the package does (PyPy)."""
    assert loaded_by("dynamo_fast.testing.clock").isdisjoint({"msgspec", "orjson", "prometheus_client", "uvloop"})


def imported_for_type_checkers(package: Any) -> set[tuple[str, str]]:
    """Each module and name that the package imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert "lazy(" in ast.unparse(block.orelse[0])  # else they take any name for one that is there
    return {
        (str(node.module), each.name) for node in block.body if isinstance(node, ast.ImportFrom) for each in node.names
    }


@pytest.mark.parametrize("package", LAZY)
def test_each_public_name_is_what_type_checkers_take_it_for(package: Any) -> None:
    pytest.importorskip("msgspec", reason="where it is missing (PyPy) there is only the codec")
    imported = imported_for_type_checkers(package)
    assert {name for _, name in imported} == set(package.__all__)
    for module, name in imported:
        expected = getattr(__import__(module, fromlist=[name]), name)
        assert getattr(package, name) is expected
        assert package.__getattr__(name) is expected  # it is an attribute by now, so this is asked for apart


@pytest.mark.parametrize("package", LAZY)
def test_a_package_lists_its_names_before_they_are_loaded(package: Any) -> None:
    program = f"import {package.__name__} as package; print(*dir(package))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(package.__all__) <= set(done.stdout.split())
    assert len(package.__all__) == len(set(package.__all__))


@pytest.mark.parametrize("package", LAZY)
def test_a_name_that_is_not_there_is_an_attribute_error(package: Any) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'PushRuoter'") as caught:
        _ = package.PushRuoter
    assert caught.value.obj is package  # by which Python suggests the right one


@pytest.mark.parametrize("value", ["", "cython", "python", "rust", "Cython"])
def test_the_backend_is_read_as_the_other_settings_are(value: str) -> None:
    def outcome(read: Any) -> str:
        try:
            return str(read({VARIABLE: value}))
        except InvalidConfig as error:
            return str(error)

    assert outcome(backend) == outcome(lambda environ: config.CodecConfig.from_env(environ).backend)


def test_json_is_written_in_one_place() -> None:
    """orjson is optional: a second import of it would be one that fails where it is missing."""
    package = Path(dynamo_fast.__file__).parent
    importing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "import orjson" in path.read_text(encoding="utf-8")
    }
    assert importing == {"wire/json_text.py"}
