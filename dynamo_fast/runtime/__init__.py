"""The drop-in for `dynamo.runtime`: the same names, the same behaviour, the same texts (runtime.md 4).

    from dynamo_fast.runtime import DistributedRuntime      # was: from dynamo.runtime import DistributedRuntime

Where Dynamo 1.3.1 and 1.6.1 differ, this package does as 1.6.1. What differs from both, and
why, is in docs/compatibility.md.
"""

from dynamo_fast.egress.push_router import RouterMode
from dynamo_fast.ingress.request_stream import RequestStream as PyAsyncRequestStream
from dynamo_fast.ingress.response_sender import ResponseSender
from dynamo_fast.runtime.client import AsyncResponseStream, Client, Instance
from dynamo_fast.runtime.context import Context, ContextMetadata, SpanProxy
from dynamo_fast.runtime.decorators import dynamo_endpoint, dynamo_worker
from dynamo_fast.runtime.distributed import DistributedRuntime
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.runtime.exceptions import (
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoException,
    EngineShutdown,
    InvalidArgument,
    NotOffered,
    RouterQueueLimitExceeded,
    SelectionServiceError,
    StreamIncomplete,
    Unknown,
    WorkerUnavailable,
)
from dynamo_fast.runtime.metrics import FirstTokenSource, RuntimeMetrics
from dynamo_fast.runtime.unary import UnaryClient, serve_unary_endpoint
from dynamo_fast.wire.instance import TransportType
from dynamo_fast.wire.payload import Annotated

__all__ = [
    "Annotated",
    "AsyncResponseStream",
    "Cancelled",
    "CannotConnect",
    "Client",
    "ConnectionTimeout",
    "Context",
    "ContextMetadata",
    "Disconnected",
    "DistributedRuntime",
    "DynamoException",
    "Endpoint",
    "EngineShutdown",
    "FirstTokenSource",
    "Instance",
    "InvalidArgument",
    "NotOffered",
    "PyAsyncRequestStream",
    "ResponseSender",
    "RouterMode",
    "RouterQueueLimitExceeded",
    "RuntimeMetrics",
    "SelectionServiceError",
    "SpanProxy",
    "StreamIncomplete",
    "TransportType",
    "UnaryClient",
    "Unknown",
    "WorkerUnavailable",
    "dynamo_endpoint",
    "dynamo_worker",
    "serve_unary_endpoint",
]
