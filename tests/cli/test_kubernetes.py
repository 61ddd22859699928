"""The commands on discovery in Kubernetes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.discovery.test_kubernetes import record


async def instances(api: KubeApi, folder: Path) -> tuple[int | None, str, str]:
    """The status, the output and the errors of `dynamo-fast instances --discovery kubernetes`."""
    settings = {"POD_NAME": "pod-x", "POD_UID": uid("pod-x"), "POD_NAMESPACE": NAMESPACE}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo_fast", "instances", "--discovery", "kubernetes"),
        env={**settings, "KUBECONFIG": str(api.kubeconfig(folder / "config")), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode(), errors.decode()


async def test_instances_lists_what_is_ready(tmp_path: Path) -> None:
    async with KubeApi() as api:
        api.metadata("pod-a", record(0xA1))
        assert await instances(api, tmp_path) == (
            1,
            "",
            "dynamo-fast instances: error: no instance (discovery: kubernetes)\n",
        )
        api.slice("s", {"pod-a": True})
        status, output, errors = await instances(api, tmp_path)
        assert (status, errors) == (0, "")
        assert output == "test.back_end.a-b.c é  a1  127.0.0.1:1/x  json\n"


async def test_instances_says_what_the_api_refuses(tmp_path: Path) -> None:
    async with KubeApi() as api:
        api.faults["LIST endpointslices"] = (403, "endpointslices is forbidden")
        status, output, errors = await instances(api, tmp_path)
        assert (status, output) == (1, "")
        assert "HTTP 403, endpointslices is forbidden; the service account needs a Role" in errors
        assert "Traceback" not in errors
