"""The page: what is served, who may see it, and what a browser makes of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontend import free_port
from dynamo_fast import FileDiscovery
from dynamo_fast.gateway import page as module
from dynamo_fast.gateway.page import html, security_headers
from dynamo_fast.llm import ModelCard, ModelInput, ModelType
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.gateway.browser import CTRL, Browser, Tab, find_chromium, open_browser
from tests.gateway.chats import chats
from tests.gateway.conftest import Begin, Stage, staged
from tests.interop.peers import VERSIONS, peer_worker
from tests.waiting import until

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&amp;'


# What is served ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself() -> None:
    text = html().decode()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert not re.findall(r"@import|\burl\(", text)
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}, "the namespace of SVG"


def test_the_page_makes_no_html_of_texts() -> None:
    text = html().decode()
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert dangerous not in text
    assert not re.findall(r"<[a-z]+[^>]*\s(?:style|on\w+)=", text.partition("<script>")[0])


def test_the_policy_names_the_script_and_the_styles() -> None:
    policy = dict(each.split(" ", 1) for each in security_headers()["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"


async def test_the_page_is_sent_once_and_compressed(stage: Stage) -> None:
    async with stage.client.get("/") as answer:
        assert answer.status == 200
        assert await answer.read() == html()
        assert answer.headers["Content-Encoding"] in ("gzip", "deflate")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        etag = answer.headers["ETag"]
    async with stage.client.get("/", headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
        assert "Content-Security-Policy" in answer.headers


async def next_event(answer: Any) -> tuple[str, Any]:
    name = (await answer.content.readline()).decode().removeprefix("event: ").strip()
    data = json.loads((await answer.content.readline()).removeprefix(b"data: "))
    assert await answer.content.readline() == b"\n"
    return name, data


async def test_the_events_are_a_snapshot_and_then_the_news(stage: Stage) -> None:
    async with stage.client.get("/_events") as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        name, first = await next_event(answer)
        assert name == "state"
        assert [each["name"] for each in first["endpoints"]] == ["a.b.c"]
        async with stage.post({"items": [1, 2]}) as posted:
            await posted.read()
        while True:
            name, news = await next_event(answer)
            assert name == "tick"
            assert len(news["samples"]) == 1
            if news["requests"]:
                break
        assert (news["requests"], news["items"], news["samples"][0]["in_flight"]) == (1, 2, 0)
    async with stage.client.get("/_state") as answer:
        assert (await answer.json())["items"] == 2


async def test_the_streams_of_events_end_with_the_server(stage: Stage) -> None:
    async with stage.client.get("/_events") as answer:
        await next_event(answer)
        await asyncio.wait_for(stage.server.close(), 10)
        rest = await answer.content.read()
        assert rest == b"" or rest.startswith(b"event: tick")


async def test_viewers_are_limited_and_those_who_go_are_forgotten(
    stage: Stage, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Page.__init__, "__kwdefaults__", {"max_viewers": 1})
    stage = await begin()
    async with stage.client.get("/_events") as first:
        await next_event(first)
        async with stage.client.get("/_events") as second:
            assert second.status == 503
            assert int(second.headers["Retry-After"]) > 0
            assert "limit is 1" in (await second.json())["error"]["message"]
    first.close()

    async def served() -> bool:
        async with stage.client.get("/_events") as answer:
            return answer.status == 200

    async def freed() -> None:
        while not await served():
            await asyncio.sleep(0)

    await asyncio.wait_for(freed(), 20)


@pytest.mark.parametrize("path", ["/_state", "/_events"])
async def test_what_the_page_shows_needs_the_token(tmp_path: Path, path: str) -> None:
    async with staged(tmp_path, token="secret") as stage:
        async with stage.client.get("/") as answer:
            assert answer.status == 200
        async with stage.client.get(path) as answer:
            assert answer.status == 401
        async with stage.client.get(path, headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200


# In a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("NO BROWSER: the page is not tested as one sees it. `apt-get install chromium` brings one")
    async with open_browser(program) as opened:
        yield opened


def is_clean(tab: Tab, stage: Stage) -> bool:
    """Nothing went wrong in the tab, and it asked only this gateway."""
    assert tab.problems == []
    assert all(url.startswith((stage.server.url, "data:")) for url in tab.urls), tab.urls
    return True


async def shown(tab: Tab, selector: str) -> str:
    return str(await tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


async def test_what_happens_is_seen(browser: Browser, begin: Begin, tmp_path: Path) -> None:
    stage: Stage = await begin(show_errors=True)
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('#live').innerText === 'live'")
        await tab.until("document.querySelector('.instances li')")
        assert "a.b.c" in await shown(tab, "#endpoints")
        assert await shown(tab, ".instances .health") == "ready"
        for body in ({"items": list(range(40))}, {"error": "RuntimeError"}):
            async with stage.post(body) as answer:
                await answer.read()
        async with stage.post({"items": [1], "hangs": True}):
            await tab.until("document.querySelector('#tiles .now').innerText === '1'")
            await tab.until("document.querySelector('.endpoint summary').innerText.includes('41')")
        await tab.until("document.querySelector('#errors li')")
        assert "RuntimeError: on purpose" in await shown(tab, "#errors")
        assert "RemoteError" in await shown(tab, "#errors")
        for chart in (1, 2):
            await tab.until(f"document.querySelector('#charts .chart:nth-child({chart}) path.p50').getAttribute('d')")
        assert re.search(r"p50 [\d.,]+ (µs|ms|s)", await tab.evaluate("CHARTS[0].svg.getAttribute('aria-label')"))

        other = FileDiscovery(tmp_path)
        await other.register(Instance(EndpointId("a", "b", "c"), 7, TransportType("tcp", "127.0.0.1:1/7/c")))
        await tab.until("document.querySelectorAll('.instances li').length === 2")
        await other.close()
        await tab.until("document.querySelectorAll('.instances li').length === 1")
        assert (await shown(tab, "#changes li")).startswith("left")
        assert is_clean(tab, stage)


async def test_a_request_is_made_by_keyboard_alone(browser: Browser, stage: Stage) -> None:
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('#endpoint').value === 'a.b.c'")
        await tab.press("Tab")  # "Skip to Try it"
        assert await tab.evaluate("document.activeElement.className") == "skip"
        await tab.press("Enter")
        for _ in range(3):
            await tab.press("Tab")
        assert await tab.evaluate("document.activeElement.id") == "body"
        await tab.evaluate("document.activeElement.select()")
        await tab.write('{"items": [1,')
        await tab.press("Enter", CTRL)
        assert "Not JSON" in await shown(tab, "#body-wrong")
        assert await tab.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
        await tab.evaluate("document.activeElement.select()")
        await tab.write(json.dumps({"items": [{"text": HOSTILE}, "second"]}))
        await tab.press("Enter", CTRL)
        await tab.until("document.querySelector('#result').innerText.includes('complete')")
        assert not await tab.evaluate("'hacked' in window")
        items = await shown(tab, "#items")
        assert json.dumps(HOSTILE)[1:-1] in items
        assert '"second"' in items
        assert re.search(r"status 200\s+first item .*\s+items 2\s", await shown(tab, "#result"))
        assert is_clean(tab, stage)


async def test_a_request_is_stopped_and_its_worker_told(browser: Browser, stage: Stage) -> None:
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('#endpoint').value === 'a.b.c'")
        await tab.evaluate("""$("body").value = '{"items": [1], "hangs": true}', $("send").click()""")
        await tab.until("document.querySelectorAll('#items li').length === 1")
        assert stage.inflight == 1
        await tab.evaluate("$('stop').click()")
        await tab.until("document.querySelector('#result').innerText.includes('stopped')")
        await until(lambda: stage.inflight == 0)
        assert await tab.evaluate("!$('send').disabled && $('stop').disabled")


async def test_an_error_is_shown_as_one(browser: Browser, stage: Stage) -> None:
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('#endpoint').value === 'a.b.c'")
        for body, text in (('{"error": "ValueError"}', "400 "), ('{"items": [1], "error": "RuntimeError"}', "error")):
            await tab.evaluate(f"$('body').value = {json.dumps(body)}, $('send').click()")
            await tab.until("document.querySelector('#result').innerText.includes('failed')")
            assert text in await shown(tab, "#items .failed")


async def test_names_of_peers_run_nothing(browser: Browser, stage: Stage, tmp_path: Path) -> None:
    other = FileDiscovery(tmp_path)
    await other.register(Instance(EndpointId(HOSTILE, "b", "c"), 7, TransportType("tcp", f"127.0.0.1:1/7/{HOSTILE}")))
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelectorAll('.endpoint').length === 2")
        assert HOSTILE in await shown(tab, "#endpoints")
        assert not await tab.evaluate("'hacked' in window || document.querySelector('img')")
        await tab.evaluate(f"$('endpoint').value = {json.dumps(HOSTILE + '.b.c')}, showCurl()")
        assert HOSTILE not in await shown(tab, "#curl")
        assert is_clean(tab, stage)
    await other.close()


async def test_a_chat(browser: Browser, stage: Stage) -> None:
    await stage.worker.serve(chats, "a.b.m", model=ModelCard.text("m", model_type=ModelType.Chat))
    tensors = ModelCard.text("tensors", model_type=ModelType.Chat, model_input=ModelInput.Tensor)
    await stage.worker.serve(chats, "a.b.t", model=tensors)
    async with browser.tab(f"{stage.server.url}/#chat") as tab:
        await tab.until("$('model').options.length === 2")
        assert await tab.evaluate("$('model').value") == "m"
        assert "needs a frontend" in await tab.evaluate("$('model').options[1].text")
        assert await tab.evaluate("!$('panel-chat').hidden && $('panel-request').hidden")
        await tab.evaluate("$('message').focus()")
        await tab.write(HOSTILE)
        await tab.press("Enter", CTRL)
        await tab.until("document.querySelector('.facts')")
        assert await shown(tab, ".said.user") == HOSTILE
        assert await shown(tab, ".said.assistant") == "ab"
        assert "2 chunks" in await shown(tab, ".facts")
        for number, wanted in enumerate(("early", "late")):  # an error as a status, and as a part of the stream
            await tab.evaluate("$('message').focus()")
            await tab.write(wanted)
            await tab.press("Enter", CTRL)
            await tab.until(f"chat === null && document.querySelectorAll('.said.failed').length > {number}")
            assert "Invalid request" in await tab.evaluate(
                f"document.querySelectorAll('.said.failed')[{number}].innerText"
            )
        await tab.evaluate("$('message').focus()")
        await tab.write("hang")
        await tab.press("Enter", CTRL)
        await tab.until("document.querySelector('.said.assistant:last-child').innerText === 'x'")
        await tab.evaluate("$('hush').click()")
        await until(lambda: stage.inflight == 0)
        await tab.until(
            "chat === null && [...document.querySelectorAll('.facts')].at(-1).innerText.includes('stopped')"
        )
        assert await tab.evaluate("messages.map(each => each.role).join()") == (
            "user,assistant,user,user,assistant,user,assistant"
        )
        assert not await tab.evaluate("'hacked' in window")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_worker_is_seen_and_asked(browser: Browser, version: str, tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('.instances li')")
        with peer_worker(version, tmp_path):
            await tab.until("state.instances.some(each => each.endpoint === 'peer.worker.generate')")
            await tab.evaluate(
                "$('endpoint').value = 'peer.worker.generate', $('body').value = '{\"mode\":\"count\",\"n\":3}'"
            )
            await tab.evaluate("$('send').click()")
            await tab.until("document.querySelector('#result').innerText.includes('complete')")
            assert '{"number":2}' in await shown(tab, "#items")
            await tab.until("state.endpoints.find(each => each.name === 'peer.worker.generate').items === 3")
        await tab.until("state.changes.some(each => each.what === 'left' && each.endpoint === 'peer.worker.generate')")
        assert is_clean(tab, stage)


async def test_the_page_asks_for_the_token(browser: Browser, tmp_path: Path) -> None:
    async with (
        staged(tmp_path, token="secret") as stage,
        browser.tab(stage.server.url) as tab,
    ):
        for token in ("wrong", "secret"):
            await tab.until("$('ask').open && $('token').value === ''")
            assert await tab.evaluate("document.activeElement.id") == "token"
            await tab.write(token)
            await tab.press("Enter")
        await tab.until("document.querySelector('#live').innerText === 'live'")
        await tab.until("document.querySelector('#endpoint').value === 'a.b.c'")
        await tab.evaluate("""$("body").value = '{"items": [1]}', $("send").click()""")
        await tab.until("document.querySelector('#result').innerText.includes('complete')")
        assert "secret" not in await tab.evaluate("document.documentElement.outerHTML")


async def test_the_page_finds_the_gateway_again(browser: Browser, begin: Begin, tmp_path: Path) -> None:
    port = free_port()
    async with staged(tmp_path, port=port) as stage:
        context = browser.tab(stage.server.url)
        tab = await context.__aenter__()
        await tab.until("document.querySelector('#live').innerText === 'live'")
    await tab.until("document.querySelector('#live').innerText !== 'live'")
    async with staged(tmp_path, port=port):
        await tab.until("document.querySelector('#live').innerText === 'live'")
        await context.__aexit__(None, None, None)


_CONTRAST = """
(() => {
  const light = colour => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).map(text => linear(Number(text) / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled, script, style, svg")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push([ratio.toFixed(2), element.tagName, element.className, element.textContent.slice(0, 30)]);
  }
  return poor;
})()
"""


async def test_every_text_can_be_read(browser: Browser, stage: Stage) -> None:
    grounds = {"light": "rgb(244, 246, 248)", "dark": "rgb(11, 16, 22)"}
    async with stage.post({"error": "RuntimeError"}) as answer:
        await answer.read()
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('#errors li') && document.querySelector('.instances li')")
        await tab.evaluate("document.getAnimations().forEach(each => each.finish())")
        for scheme, ground in grounds.items():
            await tab.show_as(1440, 900, scheme)
            assert await tab.evaluate(_CONTRAST) == []
            assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        await tab.evaluate("$('theme').click()")  # from the system's to light
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == grounds["light"]


async def test_the_page_fits_any_width(browser: Browser, stage: Stage, tmp_path: Path) -> None:
    other = FileDiscovery(tmp_path)
    long = EndpointId("a-namespace-with-quite-a-long-name", "and_a_component_with_another", "x" * 60)
    await other.register(Instance(long, (1 << 64) - 1, TransportType("tcp", f"127.0.0.1:1/7/{'y' * 200}")))
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelectorAll('.endpoint').length === 2")
        for width in (320, 390, 800, 1440, 2560):
            await tab.show_as(width, 800)
            for panel in ("tab-request", "tab-chat"):
                await tab.evaluate(f"choose($('{panel}'))")
                assert await tab.evaluate("document.documentElement.scrollWidth") <= width
    await other.close()


async def test_every_control_has_a_name(browser: Browser, stage: Stage) -> None:
    async with browser.tab(stage.server.url) as tab:
        await tab.until("document.querySelector('.instances li')")
        await tab.evaluate("choose($('tab-chat'))")
        await tab.call("Accessibility.enable")
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        roles = ("button", "tab", "textbox", "combobox", "MenuListPopup", "img", "list", "region", "group")
        named = {
            role: [each.get("name", {}).get("value", "") for each in nodes if role_of(each) == role] for role in roles
        }
        for role in ("button", "tab", "textbox", "combobox", "img"):
            assert all(named[role]), (role, named[role])
        assert {"Request", "Chat"} <= set(named["tab"])


def role_of(node: dict[str, Any]) -> str:
    return "" if node["ignored"] else str(node["role"]["value"])
