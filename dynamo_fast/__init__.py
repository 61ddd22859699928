"""Dynamo's request plane for Python: a router and a worker that speak its wire protocol, byte for byte.

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context     # the router's side
from dynamo_fast import serve                                              # the worker's side
from dynamo_fast import TwoPartCodec, TwoPartDecoder, codec                # the frames alone
"""

from typing import TYPE_CHECKING

from dynamo_fast import sources  # isort: skip  # first: it says how the others are imported
from dynamo_fast._lazy import lazy

if TYPE_CHECKING:
    from dynamo_fast import codec, errors
    from dynamo_fast.codec import (
        TcpRequestCodec,
        TcpRequestDecoder,
        TcpRequestMessage,
        TcpResponseCodec,
        TcpResponseDecoder,
        TcpResponseMessage,
        TwoPartCodec,
        TwoPartDecoder,
        TwoPartMessage,
        TwoPartMessageType,
    )
    from dynamo_fast.context import Context
    from dynamo_fast.discovery.file import FileDiscovery
    from dynamo_fast.egress.push_router import PushRouter, RouterMode
    from dynamo_fast.egress.request_sender import ManyIn
    from dynamo_fast.egress.response_server import TcpStreamServer
    from dynamo_fast.egress.response_stream import ResponseStream
    from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
    from dynamo_fast.egress.sink import Delivery, Sink
    from dynamo_fast.egress.tcp_client import TcpRequestClient
    from dynamo_fast.errors import DynamoError
    from dynamo_fast.ingress.answer import Batch
    from dynamo_fast.ingress.worker import Worker, serve
    from dynamo_fast.streams import read_message, write_message
    from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
    from dynamo_fast.wire.instance import Instance
    from dynamo_fast.wire.payload import Annotated, PayloadCodec
else:
    # An import of the codec alone loads none of the others. Type checkers must not see this: any name would do for them.
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "dynamo_fast": "codec errors",
            "dynamo_fast.codec": (
                "TcpRequestCodec TcpRequestDecoder TcpRequestMessage TcpResponseCodec TcpResponseDecoder "
                "TcpResponseMessage TwoPartCodec TwoPartDecoder TwoPartMessage TwoPartMessageType"
            ),
            "dynamo_fast.context": "Context",
            "dynamo_fast.discovery.file": "FileDiscovery",
            "dynamo_fast.egress.push_router": "PushRouter RouterMode",
            "dynamo_fast.egress.request_sender": "ManyIn",
            "dynamo_fast.egress.response_server": "TcpStreamServer",
            "dynamo_fast.egress.response_stream": "ResponseStream",
            "dynamo_fast.egress.router": "AddressedPushRouter AddressedRequest",
            "dynamo_fast.egress.sink": "Delivery Sink",
            "dynamo_fast.egress.tcp_client": "TcpRequestClient",
            "dynamo_fast.errors": "DynamoError",
            "dynamo_fast.ingress.answer": "Batch",
            "dynamo_fast.ingress.worker": "Worker serve",
            "dynamo_fast.streams": "read_message write_message",
            "dynamo_fast.wire.address": "EndpointId EndpointInstanceId",
            "dynamo_fast.wire.instance": "Instance",
            "dynamo_fast.wire.payload": "Annotated PayloadCodec",
        },
    )

__all__ = [
    "AddressedPushRouter",
    "AddressedRequest",
    "Annotated",
    "Batch",
    "Context",
    "Delivery",
    "DynamoError",
    "EndpointId",
    "EndpointInstanceId",
    "FileDiscovery",
    "Instance",
    "ManyIn",
    "PayloadCodec",
    "PushRouter",
    "ResponseStream",
    "RouterMode",
    "Sink",
    "TcpRequestClient",
    "TcpRequestCodec",
    "TcpRequestDecoder",
    "TcpRequestMessage",
    "TcpResponseCodec",
    "TcpResponseDecoder",
    "TcpResponseMessage",
    "TcpStreamServer",
    "TwoPartCodec",
    "TwoPartDecoder",
    "TwoPartMessage",
    "TwoPartMessageType",
    "Worker",
    "codec",
    "errors",
    "read_message",
    "serve",
    "write_message",
]

del TYPE_CHECKING, lazy, sources

__version__ = "0.1.0"
