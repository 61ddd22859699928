"""`AnswerRewriter`: makes workers answer to another address than the router's, request by request."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from dynamo_fast.codec import TcpRequestCodec, TcpRequestDecoder, TcpRequestMessage, TwoPartDecoder, encode_two_part
from dynamo_fast.errors import ControlError, InvalidRequest
from dynamo_fast.inspect.describe import MAX_FRAME_SIZE, complete_messages
from dynamo_fast.wire.control import ConnectionInfo, RequestControlMessage, TcpStreamConnectionInfo

__all__ = ["AnswerRewriter"]


class AnswerRewriter:
    """Replaces the router's response address in the requests of one connection by `address`.

    `expect` is called with what the request said: the router's address and the stream's subject; also with the token of
    a session in place of the subject, if the router offers one (mux.md 2). Bytes that are not a request, or a request that
    cannot be read, pass unchanged.

    Owned by one connection of a relay, which calls `rewrite` with each piece of the stream and `rest` at its end. It
    holds at most one incomplete request.
    """

    def __init__(self, address: str, expect: Callable[[TcpStreamConnectionInfo], None]) -> None:
        self._address = address
        self._expect = expect
        self._decoder = TcpRequestDecoder(MAX_FRAME_SIZE)
        self._held = bytearray()

    def rewrite(self, data: bytes) -> bytes:
        """The bytes to pass on for `data`: whole requests."""
        self._held += data
        rewritten = []
        for message in complete_messages(self._decoder, data):
            size = 8 + len(message.endpoint_path) + len(message.headers) + len(message.payload)
            rewritten.append(self._request(message) or bytes(self._held[:size]))
            del self._held[:size]
        if self._decoder.failed is not None:
            rewritten.append(self.rest())
        return b"".join(rewritten)

    def rest(self) -> bytes:
        """The bytes of a request that is not complete, and that now never will be."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _request(self, message: TcpRequestMessage) -> bytes | None:
        parts = complete_messages(TwoPartDecoder(MAX_FRAME_SIZE), bytes(message.payload))
        try:
            control = RequestControlMessage.decode(parts[0].header) if parts else None
            if control is None:
                return None
            if control.mux is not None:
                to = TcpStreamConnectionInfo.from_connection_info(control.connection_info)
                self._expect(replace(to, subject=control.mux.session))
            second = control.request_stream_connection_info
            control = replace(
                control,
                connection_info=self._info(control.connection_info),
                request_stream_connection_info=None if second is None else self._info(second),
            )
        except (ControlError, InvalidRequest):
            return None
        payload = encode_two_part(control.encode(), parts[0].data)
        return TcpRequestCodec().encode_message(
            TcpRequestMessage.from_parts(message.endpoint_path, message.headers, payload)
        )

    def _info(self, connection_info: ConnectionInfo) -> ConnectionInfo:
        info = TcpStreamConnectionInfo.from_connection_info(connection_info)
        self._expect(info)
        return replace(info, address=self._address).to_connection_info()
