"""`Cors`: which pages of other origins may call (Fetch standard, 3.2). Without origins there is none."""

from __future__ import annotations

from aiohttp import web

__all__ = ["Cors"]

_SECONDS = "600"
"""How long a browser may remember the answer to a preflight request."""
_EXPOSED = "X-Request-Id, x-dynamo-instance-id, Retry-After"


class Cors:
    """Adds the headers that a browser asks for. Owned by the application."""

    def __init__(self, origins: str) -> None:
        """`origins`: separated by commas, or `*`."""
        self._origins = frozenset(origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip())
        self._all = "*" in self._origins

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """See aiohttp's `on_response_prepare`."""
        varies = response.headers.get("Vary")
        response.headers["Vary"] = (
            f"{varies}, Origin" if varies else "Origin"
        )  # also of an answer to a request without one
        origin = request.headers.get("Origin")
        if origin is not None and (self._all or origin in self._origins):
            response.headers["Access-Control-Allow-Origin"] = "*" if self._all else origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks before it sends a request; None if this is no such question."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        headers = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": _SECONDS}
        return web.Response(status=204, headers={**headers, "Access-Control-Allow-Headers": wanted})
