"""A headless Chromium, driven over its own debugging protocol: `Browser` is the process, `Tab` one page in it.

    async with open_browser(program) as browser, browser.tab(url) as tab:
        await tab.until("document.title !== ''")
        assert await tab.evaluate("document.title") == "dynamo-fast gateway"

`find_chromium` looks for Debian's package (`apt-get install chromium`) and for what is called like it elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from tests.waiting import until

__all__ = ["Browser", "Tab", "find_chromium", "open_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it is started as root where containers test
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    " ": ("Space", 32, " "),
}
CTRL = 2


def find_chromium() -> str | None:
    """The program; None if there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page. Made by `Browser.tab`; collects what went wrong in it, and which URLs it asked for."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.problems: list[str] = []
        """Exceptions of its script, and what its policy or the network refused."""
        self.urls: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def read(self) -> None:
        """Take what the browser says, until it hangs up."""
        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                self._take(json.loads(message.data))
        for answer in self._answers.values():
            answer.cancel()

    def _take(self, said: dict[str, Any]) -> None:
        if "id" in said:
            answer = self._answers.pop(said["id"])
            if answer.done():
                return
            if "error" in said:
                answer.set_exception(RuntimeError(said["error"]["message"]))
            else:
                answer.set_result(said["result"])
            return
        about = said.get("params", {})
        match said["method"]:
            case "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded":
                self.problems.append(f"{about['entry']['source']}: {about['entry']['text']}")
            case "Network.requestWillBeSent":
                self.urls.append(about["request"]["url"])

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(self._answers[number], 30)

    async def open(self, url: str) -> None:
        """Go there; returns when the document is loaded."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        said = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"]["exception"]["description"])
        return said["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until the expression is true."""

        async def look() -> None:
            while not await self.evaluate(f"Boolean({condition})"):
                await asyncio.sleep(0)

        try:
            await asyncio.wait_for(look(), 20)
        except asyncio.TimeoutError:
            raise AssertionError(f"not true: {condition}; problems: {self.problems}") from None

    async def press(self, key: str, modifiers: int = 0) -> None:
        """A key of `_KEYS` is pressed and released."""
        code, number, text = _KEYS[key]
        how = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **how)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **how)

    async def write(self, text: str) -> None:
        """Type `text` where the focus is."""
        await self.call("Input.insertText", text=text)

    async def show_as(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """The size of the window, and whether its user prefers `light` or `dark`."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, whole: bool = True) -> bytes:
        """A PNG of the whole page, or of the window."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])


class Browser:
    """A running Chromium. Made by `open_browser`, which ends it."""

    def __init__(self, session: ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def tab(self, url: str, *, width: int = 1440, height: int = 900, scheme: str = "light") -> AsyncIterator[Tab]:
        """A page at `url`."""
        async with self._session.put(f"{self._url}/json/new?about:blank") as answer:
            target = await answer.json()
        async with self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            reading = asyncio.ensure_future(tab.read())
            try:
                await tab.show_as(width, height, scheme)
                await tab.open(url)
                yield tab
            finally:
                await socket.close()
                await reading
        async with self._session.get(f"{self._url}/json/close/{target['id']}") as answer:
            await answer.read()


@asynccontextmanager
async def open_browser(program: str) -> AsyncIterator[Browser]:
    """Start it, with a profile of its own; end it, and remove the profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            env={**os.environ, "TMPDIR": "/tmp"},  # it has a socket there, whose path must be short
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            await until(lambda: process.returncode is not None or (told.exists() and "\n" in told.read_text()))
            assert process.returncode is None, f"{program} ended with status {process.returncode}"
            async with ClientSession() as session:
                yield Browser(session, int(told.read_text().split("\n")[0]))
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
