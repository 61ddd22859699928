"""Metrics of several processes in one answer: real uvicorn and gunicorn, with the server of docs/metrics.md."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import FileDiscovery, serve
from tests.namespaces import environment
from tests.observability.exposition import value_of
from tests.programs import started
from tests.waiting import until_in_thread

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
LIMIT = 20.0
SERVERS = {
    "uvicorn": ["uvicorn", "server:app", "--workers", "2", "--host", "127.0.0.1", "--port"],
    "gunicorn": ["gunicorn", "server:app", "--workers", "2", "--worker-class", "asgi", "--bind", "127.0.0.1:{}"],
}
COUNT = "dynamo_request_plane_queue_seconds_count"
INFLIGHT = "dynamo_request_plane_inflight_requests"


def settings(folder: Path) -> dict[str, str]:
    (folder / "shared").mkdir(exist_ok=True)
    return environment(
        {
            "PROMETHEUS_MULTIPROC_DIR": str(folder / "shared"),
            "DYN_FILE_KV": str(folder / "kv"),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYNAMO_FAST_LEAVE_DELAY": "0",
        }
    )


def ask(port: int, path: str) -> tuple[str, str]:
    """The body, and the process that answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=LIMIT) as answer:
        return answer.read().decode(), answer.headers.get("x-process", "")


def until_both_answer(port: int) -> int:
    """Send requests until two processes have answered some; returns how many."""

    def up() -> bool:
        try:
            return ask(port, "/metrics") != ("", "")
        except OSError:
            return False

    until_in_thread(up)
    answered: Counter[str] = Counter()

    def both() -> bool:
        with ThreadPoolExecutor(8) as pool:
            for body, process in pool.map(lambda number: ask(port, f"/{number}"), range(16)):
                assert body.startswith("/")
                answered[process] += 1
        return len(answered) == 2

    until_in_thread(both)
    return answered.total()


async def generate(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a fork")
@pytest.mark.parametrize("server", SERVERS)
async def test_a_scrape_of_one_process_has_the_requests_of_all(
    server: str, unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    (source,) = re.findall(r"<!-- server.py -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "server.py").write_text(source)
    port = unused_tcp_port
    command = [sys.executable, "-m", *SERVERS[server]]
    command = [*command[:-1], command[-1].format(port)] if server == "gunicorn" else [*command, str(port)]
    worker = await serve(generate, "demo.backend.generate", FileDiscovery())
    with started(command, settings(tmp_path), tmp_path, subprocess.DEVNULL):
        sent = await asyncio.to_thread(until_both_answer, port)

        def is_summed() -> bool:
            text, _ = ask(port, "/metrics")
            return value_of(text, COUNT) == sent and value_of(text, INFLIGHT) == 0

        await asyncio.to_thread(until_in_thread, is_summed)
        text, _ = ask(port, "/metrics")
    await worker.close()
    assert "# TYPE dynamo_transport_tcp_bytes_sent_total counter" in text
    assert "# HELP dynamo_request_plane_send_seconds Time for send_request() to complete (seconds)" in text
    for stage in ("route", "transport_roundtrip"):
        assert value_of(text, "dynamo_frontend_stage_duration_seconds_count", stage=stage) == sent
        assert value_of(text, "dynamo_frontend_stage_duration_seconds_bucket", stage=stage, le="+Inf") == sent
    assert len(list((tmp_path / "shared").glob("histogram_*.db"))) == 2


# One process -----------------------------------------------------------------------------------------------------------


def run(source: str, folder: Path, without: str = "") -> list[str]:
    """Run the body of an async function, `without` a variable; returns what it prints."""
    body = "".join(f"    {line}\n" for line in source.strip().splitlines())
    head = (
        "import asyncio, logging, os, shutil, sys\n"
        "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestPlaneMetrics\n"
        "from dynamo_fast.observability.multiprocess import share\n"
        "from tests.observability.exposition import value_of\n"
        "logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "def value(name, **labels):\n"
        "    registry = CollectorRegistry()\n"
        "    MultiProcessCollector(registry)\n"
        "    return value_of(generate_latest(registry).decode(), name, **labels)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{head}async def main():\n{body}asyncio.run(main())"],
        env={name: value for name, value in settings(folder).items() if name != without},
        cwd=DOCUMENT.parents[1],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_figures_are_written_again_and_gauges_end_at_0(tmp_path: Path) -> None:
    source = """
metrics = RequestPlaneMetrics()
sharing = share(metrics, interval=0.01)
metrics.inflight = 2
metrics.tcp_errors = 3
metrics.send.observe(0.004)
metrics.send.observe(7)
while value("dynamo_transport_tcp_errors_total") != 3:
    await asyncio.sleep(0)
name = "dynamo_request_plane_send_seconds"
print(value("dynamo_request_plane_inflight_requests"), value(name + "_count"), value(name + "_sum"))
print([value(name + "_bucket", le=bound) for bound in ("0.001", "0.005", "1.0", "+Inf")])
metrics.tcp_errors = 4
sharing.close()
sharing.close()
print(value("dynamo_request_plane_inflight_requests"), value("dynamo_transport_tcp_errors_total"))
"""
    assert run(source, tmp_path) == ["2.0 2.0 7.004", "[0.0, 1.0, 1.0, 2.0]", "0.0 4.0"]


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be asked whether it lives")
def test_the_gauges_of_a_killed_process_are_removed_and_its_counters_are_not(tmp_path: Path) -> None:
    kill = "metrics = RequestPlaneMetrics()\nmetrics.inflight = metrics.tcp_errors = 5\nshare(metrics)\nos._exit(0)"
    run(kill, tmp_path)
    ask_for = "print(value('dynamo_request_plane_inflight_requests'), value('dynamo_transport_tcp_errors_total'))"
    assert run(ask_for, tmp_path) == ["5.0 5.0"]
    assert run(f"sharing = share()\n{ask_for}\nsharing.close()", tmp_path) == ["0.0 5.0"]


def test_a_folder_that_goes_is_only_logged(tmp_path: Path) -> None:
    source = """
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
sharing = share()
sharing.close()
"""
    first, last = run(source, tmp_path)
    assert first.startswith("the metrics of this process are not shared for now: [Errno 2]")
    assert last.startswith("the last metrics of this process are not shared: [Errno 2]")


@pytest.mark.parametrize("later", ["", "set later"])
def test_without_the_folder_it_says_what_is_missing(later: str, tmp_path: Path) -> None:
    source = f"""
from dynamo_fast.errors import InvalidConfig
os.environ["PROMETHEUS_MULTIPROC_DIR"] = {later!r}
try:
    share()
except InvalidConfig as error:
    print(error)
"""
    (text,) = run(source, tmp_path, without="PROMETHEUS_MULTIPROC_DIR")
    assert text.startswith(f"PROMETHEUS_MULTIPROC_DIR={later!r}: metrics of several processes need a folder")
