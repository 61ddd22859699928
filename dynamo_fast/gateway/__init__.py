"""HTTP and SSE before workers: `dynamo-fast gateway`, and an application of aiohttp to mount in other programs.

from dynamo_fast import gateway

async with await gateway.Routers.open(discovery, router) as routers:
    application = gateway.app(routers)          # an aiohttp.web.Application

app        what each URL does
endpoints  POST /{namespace}/{component}/{endpoint}
exchange   one HTTP request and its answer: context, worker, head, end
relay      the items of an answer on their way to the client's socket
forms      what items, comments and errors look like: SSE, NDJSON
errors     which status an error gets
limits     how much is taken at once, and from whom
routers    which endpoints and models there are
metrics    what is counted
page       GET /: the gateway in a browser
state      what the page and `dynamo-fast top` show: counts, samples of each second, the last errors
shares     the states of several processes, added up
fleet      the instances and models, and how they come and go
server     sockets, TLS, the order of leaving
"""

from dynamo_fast.errors import InvalidConfig

try:
    import aiohttp  # noqa: F401  # said here, once for all modules of the gateway
except ImportError as error:
    raise InvalidConfig("the gateway needs aiohttp: pip install 'dynamo-fast[gateway]'") from error

from dynamo_fast.gateway.app import app
from dynamo_fast.gateway.observer import Observer, RequestObserver
from dynamo_fast.gateway.routers import Routers, RouterSource

__all__ = ["Observer", "RequestObserver", "RouterSource", "Routers", "app"]
