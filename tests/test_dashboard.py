"""The dashboard and the alert rules of deploy/: every series and label that they name exists, and Prometheus takes them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dynamo_fast import AddressedPushRouter, AddressedRequest, Worker
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.router import EncodedBody
from dynamo_fast.errors import DynamoError

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS_FILE = DEPLOY / "prometheus" / "alerts.yaml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS_FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
SCRAPED = frozenset({"job", "instance"})
"""The labels that Prometheus adds."""
UNITS = {"reqps", "ops", "short", "s", "percentunit", "Bps"}
"""The units of Grafana that the dashboard uses."""


class Query(NamedTuple):
    """An expression, and the labels that texts beside it take from its result."""

    where: str
    expression: str
    told: frozenset[str]


def queries() -> Iterator[Query]:
    for panel in PANELS:
        for target in panel["targets"]:
            told = frozenset(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            yield Query(f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "5m"), told)
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert found is not None, variable
            yield Query(f"variable {variable['name']}", found[1], frozenset({found[2]}))
    for rule in ALERTS:
        told = frozenset(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        yield Query(f"alert {rule['alert']}", rule["expr"], told)


QUERIES = list(queries())


@pytest.fixture(scope="module")
def exposed() -> dict[str, frozenset[str]]:
    """The labels of each series that a worker and a router in one process expose, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SYSTEM_HOST"):
            patch.setenv(name, "127.0.0.1")
        patch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
        text = asyncio.run(metrics_after_use())
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, SCRAPED) | frozenset(sample.labels)
    return found


async def metrics_after_use() -> str:
    """What the status server answers after a request that was answered, and one that could not be read."""

    async def generate(request: Any) -> Any:
        yield request

    worker = await Worker.start(MemoryDiscovery())
    served = await worker.serve(generate, "a.b.c")
    router = await AddressedPushRouter.create()
    for data in ("x", EncodedBody(b"\xc1{")):
        try:
            async for _ in await router.generate(AddressedRequest(data, served.address)):
                pass
        except DynamoError:
            assert data != "x"
    text = worker.status.metrics().decode()
    await router.close()
    await worker.close()
    return text


# Reading PromQL --------------------------------------------------------------------------------------------------------


def parts(node: Any) -> list[Any]:
    """The expressions of which a node of PromQL is made."""
    found = [getattr(node, name, None) for name in ("expr", "param", "lhs", "rhs", "vector_selector")]
    return [each for each in (*found, *getattr(node, "args", ())) if each is not None]


def selectors(node: Any) -> list[Any]:
    if isinstance(node, promql.VectorSelector):
        return [node]
    return [each for part in parts(node) for each in selectors(part)]


def aggregations(node: Any) -> list[Any]:
    here = [node] if isinstance(node, promql.AggregateExpr) else []
    return here + [each for part in parts(node) for each in aggregations(part)]


def grouped_by(node: Any) -> frozenset[str]:
    if node.modifier is None:
        return frozenset()
    assert node.modifier.type == promql.AggModifierType.By, "only `by` is understood here"
    return frozenset(node.modifier.labels)


def labels_of(node: Any, exposed: dict[str, frozenset[str]]) -> frozenset[str]:
    """The labels of the result."""
    if isinstance(node, promql.AggregateExpr):
        return grouped_by(node)
    if isinstance(node, promql.VectorSelector):
        return exposed[str(node.name)]
    (first, *_) = [each for each in parts(node) if not isinstance(each, promql.NumberLiteral)]
    return labels_of(first, exposed)


def faults(query: Query, exposed: dict[str, frozenset[str]]) -> Iterator[str]:
    tree = promql.parse(query.expression)
    unknown = [each.name for each in selectors(tree) if each.name not in exposed]
    if unknown:
        yield f"no such series: {unknown}"
        return
    for selector in selectors(tree):
        if wrong := sorted({each.name for each in selector.matchers.matchers} - exposed[selector.name]):
            yield f"{selector.name} has no label {wrong}"
    for aggregation in aggregations(tree):
        for selector in selectors(aggregation):
            if wrong := sorted(grouped_by(aggregation) - exposed[selector.name]):
                yield f"{selector.name} has no label {wrong}"
    if wrong := sorted(query.told - labels_of(tree, exposed)):
        yield f"the result has no label {wrong}"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_what_a_query_names_exists(query: Query, exposed: dict[str, frozenset[str]]) -> None:
    assert list(faults(query, exposed)) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(dynamo_component_request_total[5m])", "no such series: ['dynamo_component_request_total']"),
        ("sum(dynamo_component_requests_total{endpoint='x'})", "has no label ['endpoint']"),
        ("sum by (dynamo_endpoint) (dynamo_request_plane_inflight_requests)", "has no label ['dynamo_endpoint']"),
        ("sum by (job) (dynamo_component_requests_total)", "the result has no label ['instance']"),
    ],
)
def test_a_query_that_is_wrong_is_found(expression: str, fault: str, exposed: dict[str, frozenset[str]]) -> None:
    (found,) = faults(Query("", expression, frozenset({"instance"} if "by (job)" in expression else ())), exposed)
    assert fault in found


def test_every_series_of_a_worker_and_of_a_router_is_shown(exposed: dict[str, frozenset[str]]) -> None:
    """By the dashboard or by an alert, but for those that say the same as another."""
    named = {each.name for query in QUERIES for each in selectors(promql.parse(query.expression))}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}
    same = {"dynamo_engine_request", "dynamo_request_queue", "dynamo_work_handler_permit_wait_seconds"}
    same |= {"dynamo_work_handler_enqueue_rejected_total"}
    assert families - same - {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} == set()


def test_the_page_of_metrics_has_every_series_and_no_other(exposed: dict[str, frozenset[str]]) -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(dynamo_\w+)`", line)
    }
    assert told == {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed}


# The files themselves ---------------------------------------------------------------------------------------------------


def test_grafana_can_show_the_dashboard() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["uid"]
    assert len({each["id"] for each in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == variables
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [each["refId"] for each in panel["targets"]] == list("ABC"[: len(panel["targets"])])


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for each in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        cells = {
            (x, y) for x in range(each["x"], each["x"] + each["w"]) for y in range(each["y"], each["y"] + each["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: Debian's package `prometheus` has it")
    return found


def test_prometheus_takes_the_alerts(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(ALERTS_FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_queries_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"query_{n}", "expr": each.expression} for n, each in enumerate(QUERIES)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    """`0x30` is 30 minutes of 0, `0+9x30` of 9 more a minute."""
    worker = 'job="j", instance="i"'
    full = {
        f"dynamo_work_handler_pool_active_tasks{{{worker}}}": "95x30",
        f"dynamo_work_handler_pool_capacity{{{worker}}}": "100x30",
    }
    stuck = {
        f"dynamo_component_inflight_requests{{{worker}}}": "2x40",
        f"dynamo_component_request_duration_seconds_count{{{worker}}}": "7x40",
    }
    descriptors = {f"dynamo_transport_tcp_accept_backoff_total{{{worker}}}": "0x5 1x30"}
    well = {
        f"dynamo_work_handler_pool_active_tasks{{{worker}}}": "50x40",
        f"dynamo_work_handler_pool_capacity{{{worker}}}": "100x40",
        f"dynamo_component_inflight_requests{{{worker}}}": "2x40",
        f"dynamo_component_request_duration_seconds_count{{{worker}}}": "0+9x40",
        f"dynamo_transport_tcp_accept_backoff_total{{{worker}}}": "1x40",
    }
    cases = [
        ("DynamoWorkerPoolFull", full, "12m", True),
        ("DynamoWorkerPoolFull", full, "5m", False),
        ("DynamoWorkerStuck", stuck, "35m", True),
        ("DynamoRouterNotAccepting", descriptors, "8m", True),
        *(
            (name, well, "38m", False)
            for name in ("DynamoWorkerPoolFull", "DynamoWorkerStuck", "DynamoRouterNotAccepting")
        ),
    ]
    # An expectation must have the whole texts; that the alert is there, and firing, is asked by a query.
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count by (instance) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                    "eval_time": when,
                    "exp_samples": [{"labels": '{instance="i"}', "value": 1}] if fires else [],
                }
            ],
        }
        for alert, series, when, fires in cases
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS_FILE)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_names_panels_and_files_that_exist() -> None:
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text(encoding="utf-8").partition("## Dashboard and alerts")[2]
    named = [
        panel
        for row in re.findall(r"^\| .*\? \| (.*?) \|", text, re.MULTILINE)
        for panel in re.findall(r"\*(.+?)\*", row)
    ]
    assert len(named) > 8
    assert not set(named) - {panel["title"] for panel in PANELS}
    (scraping,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert scraping["rule_files"] == [ALERTS_FILE.name]
