"""Dynamo's own tests of its Python components: those that pass on the real binding pass on this project.

The files are those of the `ai-dynamo` 1.6.1 wheel whose components use the binding. They run twice with the Python that
has the whole wheel: as it is, and with the stand-ins of `dynamo-fast run`. The tests and their outcomes must be the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dynamo_fast.standin import FOLDER
from tests.interop.frontends import environment, program
from tests.interop.peers import ROOT
from tests.interop.wheels import site_packages

pytestmark = [pytest.mark.frontend, pytest.mark.timeout(1200)]

VERSION = "1.6.1"
LIMIT = 500
"""Seconds for all files: 20 where nothing else runs."""
OUTCOMES = ("failure", "error", "skipped")

FILES = [
    "common/backend/tests/test_backend_bindings.py",
    "common/backend/tests/test_disagg_helpers.py",
    "common/backend/tests/test_dp_rank.py",
    "common/backend/tests/test_engine.py",
    "common/backend/tests/test_health_check.py",
    "common/backend/tests/test_logprobs.py",
    "common/backend/tests/test_metrics_helpers.py",
    "common/backend/tests/test_multimodal_helpers.py",
    "common/backend/tests/test_publisher.py",
    "common/backend/tests/test_run.py",
    "common/backend/tests/test_sample_diffusion_engine.py",
    "common/backend/tests/test_sample_engine.py",
    "common/backend/tests/test_telemetry.py",
    "common/tests/test_model_taints.py",
    "common/tests/test_recv_forward_pass_metrics.py",
    "common/tests/test_rl_admin.py",
    "common/tests/test_snapshot_lifecycle.py",
    "common/tests/test_typed_metrics_fidelity.py",
    "global_router/tests/test_agg_routing.py",
    "global_router/tests/test_model_registration.py",
    "global_router/tests/test_priority_retry.py",
    "global_router/tests/test_priority_routing.py",
    "kv_dc_relay/tests/test_cli.py",
    "kv_dc_relay/tests/test_lifecycle.py",
    "kv_dc_relay/tests/test_main.py",
    "router/tests/test_standalone_router.py",
    "squeeze_evolve/tests/test_orchestrator.py",
    "thunderagent_router/tests/test_main.py",
    "thunderagent_router/tests/test_router.py",
    "trtllm/tests/test_push_egress.py",
]

NOT_RUNNABLE = {
    "global_planner/tests/unit/test_kubernetes_capacity_manager.py": "imports dynamo.planner, which imports sklearn",
    "global_planner/tests/unit/test_main_endpoint_registration.py": "imports dynamo.planner, which imports sklearn",
    "global_planner/tests/unit/test_orchestrator.py": "imports dynamo.planner, which imports sklearn",
    "global_planner/tests/unit/test_scale_request_handler.py": "imports dynamo.planner, which imports sklearn",
    "kv_dc_relay/tests/test_native_sources_reload.py": "imports httpx",
    "planner/tests/integration/test_fpm_event_delivery.py": "imports sklearn",
    "planner/tests/unit/test_main.py": "imports sklearn",
    "planner/tests/unit/test_remote_planner.py": "imports sklearn",
    "router/tests/test_router_sweep_config_provider.py": "skips itself: it needs the repository of Dynamo",
}
"""Files that use the binding, too, and cannot run on the real one: what they import is no requirement of the wheel."""

Outcomes = dict[str, dict[str, str]]
"""Module of the tests -> test -> passed, failure, error or skipped."""


Both = tuple[Outcomes, Outcomes]
"""What happens on the real binding, and what with the stand-ins and this project."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Those of all files, each side in one process."""
    return run_both(FILES, tmp_path_factory.mktemp("all"))


def run_both(files: Sequence[str], folder: Path) -> Both:
    """Run files on both sides at the same time."""
    for side in ("real", "ours"):
        (folder / side).mkdir()
    program(VERSION)  # or the test is skipped
    with ThreadPoolExecutor(1) as beside:
        real = beside.submit(run, files, folder / "real")
        ours = run(files, folder / "ours", FOLDER, ROOT)
        return real.result(), ours


def run(files: Sequence[str], folder: Path, *paths: Path) -> Outcomes:
    """Run files in one process of Dynamo's Python, with `paths` before its own packages."""
    python, packages = program(VERSION), site_packages(VERSION)
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if packages.parent.name != here:  # pytest, and what this project needs, come from here
        pytest.skip(f"the real frontend is installed for {packages.parent.name}, and these tests run on {here}")
    report = folder / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", f"--junit-xml={report}"]
    command += ["-c", os.devnull, "--rootdir", str(packages), "--import-mode=importlib", "--noconftest"]
    command += ["--continue-on-collection-errors", "-o", "asyncio_mode=auto"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    result = subprocess.run(
        [*command, *(str(packages / "dynamo" / file) for file in files)],
        cwd=folder,
        env=environment(
            folder, PYTHONPATH=os.pathsep.join(map(str, [*paths, sysconfig.get_path("purelib")])), DYN_LOG="off"
        ),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    sys.stderr.write(result.stdout[-50_000:] + result.stderr)  # pytest shows it with a test that fails
    outcomes: Outcomes = defaultdict(dict)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        # A file that cannot be imported has no class: its name is the module.
        module, test = (case.get("classname") or case.get("name") or "", case.get("name") or "")
        outcomes[module][test] = next((child.tag for child in case if child.tag in OUTCOMES), "passed")
    return outcomes


def of(file: str, outcomes: Outcomes) -> dict[str, str]:
    """The tests of one file, those of its classes included."""
    module = f"dynamo.{file.removesuffix('.py').replace('/', '.')}"
    return {
        f"{name}.{test}": outcome
        for name, tests in outcomes.items()
        if name == module or name.startswith(f"{module}.")
        for test, outcome in tests.items()
    }


@pytest.mark.parametrize("file", FILES)
def test_a_component_test_passes_where_it_passes_on_real_dynamo(file: str, outcomes: Both, tmp_path: Path) -> None:
    """Some of Dynamo's tests have short time-outs of their own: where the sides differ, both run again on their own."""
    expected, got = (of(file, side) for side in outcomes)
    if got != expected:
        expected, got = (of(file, side) for side in run_both([file], tmp_path))
    assert "passed" in expected.values()
    assert got == expected


@pytest.mark.parametrize("file", NOT_RUNNABLE)
def test_the_table_of_what_does_not_run_names_files_of_the_wheel(file: str) -> None:
    program(VERSION)
    assert (site_packages(VERSION) / "dynamo" / file).is_file()
    assert file not in FILES
