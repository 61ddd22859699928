"""The manifests of deploy/: Kubernetes' own schemas, and that they fit what the code asks of the API."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dynamo_fast import config as config_module
from dynamo_fast.discovery.kubernetes_client import Resource
from dynamo_fast.discovery.kubernetes_objects import DISCOVERY_LABEL, METADATAS, PODS, SLICES

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
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


@pytest.mark.parametrize("name", ["worker.yaml", "router.yaml"])
def test_the_settings_of_a_manifest_exist(name: str) -> None:
    configs = [getattr(config_module, each) for each in config_module.__all__ if each.endswith("Config")]
    known = {each.metadata["variable"] for config in configs for each in fields(config)}
    (container,) = objects(name)[-1]["spec"]["template"]["spec"]["containers"]
    given = {each["name"] for each in container["env"]}
    assert given - known == {"POD_IP"}  # which the manifest itself refers to
    assert {"POD_NAME", "POD_UID", "POD_NAMESPACE"} <= given
