"""`refuse_other_sites`, `refuse_rebound`: what a web page must not do through the browser of the user who opens it.

Both are for a gateway without a token. A browser can reach this machine's loopback, and runs the pages of any site.
"""

from __future__ import annotations

import ipaddress
import re

from aiohttp import web

from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.wire.text import printable

__all__ = ["refuse_other_sites", "refuse_rebound"]

_PORT = re.compile(r":[0-9]*$")


def refuse_other_sites(request: web.Request) -> None:
    """Raises HttpError for a POST of a browser that is not JSON by its header.

    A page may send a form or a plain text anywhere, though it cannot read the answer. For JSON the browser asks first, and
    is told no, unless CORS permits the page.
    """
    headers = request.headers
    if ("Origin" in headers or "Sec-Fetch-Site" in headers) and request.content_type.lower() != "application/json":
        raise HttpError(415, "a browser must send the header `Content-Type: application/json`")


def refuse_rebound(request: web.Request) -> None:
    """Raises HttpError unless `Host` is an IP address or `localhost`.

    The owner of a name may let it point to this machine after a browser has loaded a page from there (DNS rebinding). Then
    the page is of the same origin, and only the name shows that something is wrong.
    """
    host = request.headers.get("Host", "")
    if not _is_local(host):
        raise HttpError(
            403,
            f"this gateway listens for programs of its own machine, which ask for localhost, not for {printable(host)}: "
            "a proxy must set the header `Host: localhost`; or set DYNAMO_FAST_GATEWAY_TOKEN",
        )


def _is_local(host: str) -> bool:
    """Whether `HOST[:PORT]` cannot be the name of a stranger. Programs that are no browsers may send none."""
    name = (host.rpartition(":")[0] if _PORT.search(host) else host).lower().rstrip(".")
    if name in ("", "localhost", "127.0.0.1") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name[1:-1] if name[0] == "[" and name[-1] == "]" else name)
    except ValueError:
        return False
    return True
