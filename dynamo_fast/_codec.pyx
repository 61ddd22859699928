# cython: language_level=3, freethreading_compatible=True, binding=False, embedsignature=True, embedsignature.format=clinic
"""The compiled backend of `dynamo_fast.codec`. The format and the behaviour are described in `_codec_py`, its twin.

What is not hot (arguments, errors, texts) is taken from `_codec_py`, so that both say the same.

Frames are read through plain pointers into bytes objects, which no one can change or move. Rules for every length:
it stays in an unsigned 64-bit local until it has been compared, alone, with what is left of the limit; lengths are
subtracted from the limit, never added up before that; what has passed fits a Py_ssize_t. The asserts state the bounds of
each access: they are compiled in a debug build, and left out of a release build (CYTHON_WITHOUT_ASSERTIONS).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport Py_buffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dynamo_fast._codec_py import (
    MUX_BODY_LIMIT as _MUX_BODY_LIMIT,
    MUX_DATA as _MUX_DATA,
    MUX_PART as _MUX_PART,
    MUX_PREFIX_SIZE as _MUX_PREFIX_SIZE,
    VIEW_THRESHOLD as _VIEW_THRESHOLD,
    TwoPartMessageType,
    borrowed,
    checksum_mismatch,
    copied,
    elided,
    expect,
    field_of,
    incomplete,
    interrupted,
    message_limit,
    mux_too_large,
    owned,
    part_too_large,
    request_too_large,
    response_too_large,
    trailing,
    two_part_too_large,
    unchangeable,
    view_threshold,
    xxh3_64,
)
from dynamo_fast.errors import CodecError

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    PyObject *_new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *_bytes_at "PyBytes_AS_STRING"(PyObject *bytes)
    Py_ssize_t _bytes_size "PyBytes_GET_SIZE"(PyObject *bytes)
    Py_buffer *PyMemoryView_GET_BUFFER(object view)
    const Py_ssize_t PY_SSIZE_T_MAX

__all__ = [
    "MUX_BODY_LIMIT",
    "MUX_DATA",
    "MUX_PART",
    "MUX_PREFIX_SIZE",
    "VIEW_THRESHOLD",
    "MuxCodec",
    "MuxDecoder",
    "MuxFrame",
    "TcpRequestCodec",
    "TcpRequestDecoder",
    "TcpRequestMessage",
    "TcpResponseCodec",
    "TcpResponseDecoder",
    "TcpResponseMessage",
    "TwoPartCodec",
    "TwoPartDecoder",
    "TwoPartMessage",
    "TwoPartMessageType",
    "decode_two_part",
    "encode_data_frames",
    "encode_mux_frame",
    "encode_mux_items",
    "encode_two_part",
    "mux_frames_within",
]

VIEW_THRESHOLD = _VIEW_THRESHOLD

MUX_BODY_LIMIT, MUX_DATA, MUX_PART, MUX_PREFIX_SIZE = _MUX_BODY_LIMIT, _MUX_DATA, _MUX_PART, _MUX_PREFIX_SIZE
cdef Py_ssize_t mux_body_limit = _MUX_BODY_LIMIT
cdef uint32_t mux_data = _MUX_DATA, mux_part = _MUX_PART

cdef enum:
    TWO_PART_PREFIX = 24
    MUX_PREFIX = 8
    U8_MAX = 0xFF
    U16_MAX = 0xFFFF
    U24_MAX = 0xFFFFFF
cdef uint64_t U32_MAX = 0xFFFFFFFF

cdef bytes EMPTY = b""

# Looked up once: on Python 3.11 a member of an enumeration costs more than all the rest of a message.
cdef object HEADER_AND_DATA = TwoPartMessageType.HEADER_AND_DATA, HEADER_ONLY = TwoPartMessageType.HEADER_ONLY
cdef object DATA_ONLY = TwoPartMessageType.DATA_ONLY, EMPTY_MESSAGE = TwoPartMessageType.EMPTY


# -- messages -------------------------------------------------------------------------------------------------------
# They hold bytes and views of bytes only, hence no cycles, hence no_gc: nothing to track, nothing to traverse. The first line
# of a class's docstring is what `inspect.signature` reads, which Python takes off the text.


@cython.no_gc
@cython.freelist(1024)
cdef class TwoPartMessage:
    """TwoPartMessage(header=b'', data=b'')\n--\n\nA header and data, either of which may be empty. Immutable, hashable, picklable: `header, data = message`.

    `header` and `data` are bytes; anything else that is bytes-like is copied. Raises TypeError for the rest. Only a decoder
    that was made with `views=True` puts memoryviews into its messages. They compare equal to the same bytes; the types say
    bytes, so that those who do not ask for views need no casts.
    """

    cdef readonly object header
    cdef readonly object data

    def __init__(self, header=EMPTY, data=EMPTY):
        if self.header is not None:
            raise unchangeable(self)
        self.header = header if type(header) is bytes else copied("header", header)
        self.data = data if type(data) is bytes else copied("data", data)

    @classmethod
    def from_parts(cls, header, data):
        """The same as the constructor: Dynamo's name for it."""
        return cls(header, data)

    @classmethod
    def from_header(cls, header):
        """A message without data: the control messages of a response stream."""
        return cls.from_parts(header, EMPTY)

    @classmethod
    def from_data(cls, data):
        """A message without header: the items of a response stream."""
        return cls.from_parts(EMPTY, data)

    @property
    def message_type(self):
        if len(self.header):
            return HEADER_AND_DATA if len(self.data) else HEADER_ONLY
        return DATA_ONLY if len(self.data) else EMPTY_MESSAGE

    def parts(self):
        """`(header, data)`"""
        return self.header, self.data

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.parts() == (<TwoPartMessage>other).parts()

    def __hash__(self):
        return hash((bytes(self.header), bytes(self.data)))

    def __reduce__(self):
        return type(self), (bytes(self.header), bytes(self.data))

    def __iter__(self):
        return iter((self.header, self.data))

    def __repr__(self):
        return f"{type(self).__name__}(header={elided(self.header)}, data={elided(self.data)})"


@cython.no_gc
cdef class TcpRequestMessage:
    """TcpRequestMessage(endpoint_path, headers, payload)\n--\n\nA request on its way to a worker: the endpoint's path, the headers (JSON text, raw) and the payload (raw).

    Its parts are as those of a TwoPartMessage: `path, headers, payload = message`.
    """

    cdef readonly object endpoint_path
    cdef readonly object headers
    cdef readonly object payload

    def __init__(self, endpoint_path, headers, payload):
        if self.endpoint_path is not None:
            raise unchangeable(self)
        self.endpoint_path = endpoint_path if type(endpoint_path) is bytes else copied("endpoint_path", endpoint_path)
        self.headers = headers if type(headers) is bytes else copied("headers", headers)
        self.payload = payload if type(payload) is bytes else copied("payload", payload)

    @classmethod
    def from_parts(cls, endpoint_path, headers, payload):
        """The same as the constructor."""
        return cls(endpoint_path, headers, payload)

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        cdef TcpRequestMessage that = other
        return (
            self.endpoint_path == that.endpoint_path and self.headers == that.headers and self.payload == that.payload
        )

    def __hash__(self):
        return hash((bytes(self.endpoint_path), bytes(self.headers), bytes(self.payload)))

    def __reduce__(self):
        return type(self), (bytes(self.endpoint_path), bytes(self.headers), bytes(self.payload))

    def __iter__(self):
        return iter((self.endpoint_path, self.headers, self.payload))

    def __repr__(self):
        return (
            f"{type(self).__name__}(endpoint_path={elided(self.endpoint_path)}, "
            f"headers={elided(self.headers)}, payload={elided(self.payload)})"
        )


@cython.no_gc
cdef class TcpResponseMessage:
    """TcpResponseMessage(data=b'')\n--\n\nThe acknowledgement of a request: empty data means "accepted", anything else is the text of a refusal."""

    cdef readonly object data

    def __init__(self, data=EMPTY):
        if self.data is not None:
            raise unchangeable(self)
        self.data = data if type(data) is bytes else copied("data", data)

    @classmethod
    def from_parts(cls, data):
        """The same as the constructor."""
        return cls(data)

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self.data == (<TcpResponseMessage>other).data

    def __hash__(self):
        return hash((bytes(self.data),))

    def __reduce__(self):
        return type(self), (bytes(self.data),)

    def __repr__(self):
        return f"{type(self).__name__}(data={elided(self.data)})"


cdef Py_ssize_t limit_of(object max_message_size) except -1:
    """As `message_limit`, without a call for the usual number: each connection has a decoder of its own."""
    if type(max_message_size) is int and 0 <= max_message_size <= U32_MAX:
        return max_message_size
    return message_limit(max_message_size)


@cython.no_gc
@cython.freelist(256)
cdef class MuxFrame:
    """MuxFrame(stream, kind, body=b"")\n--\n\nOne frame of the multiplexed response plane: number of a stream, kind (see `wire.mux`), and body.

    A body that is bytes-like is copied. Raises TypeError for another one, and ValueError for a number that does not fit
    its field.
    """

    cdef readonly uint32_t stream
    cdef readonly unsigned char kind
    cdef readonly object body

    def __init__(self, stream, kind, body=EMPTY):
        if self.body is not None:
            raise unchangeable(self)
        self.stream = field_of("stream", stream, U32_MAX)
        self.kind = field_of("kind", kind, U8_MAX)
        self.body = body if type(body) is bytes else copied("body", body)

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        cdef MuxFrame that = other
        return self.stream == that.stream and self.kind == that.kind and self.body == that.body

    def __hash__(self):
        return hash((self.stream, self.kind, self.body))

    def __reduce__(self):
        return type(self), (self.stream, self.kind, self.body)

    def __repr__(self):
        return f"{type(self).__name__}(stream={self.stream}, kind={self.kind}, body={elided(self.body)})"


# -- memory ---------------------------------------------------------------------------------------------------------


cdef struct Span:
    const unsigned char *start
    Py_ssize_t size


cdef inline int span_of(object part, Span *span) except -1:
    """The memory of a part: bytes or a flat view, kept alive by the caller.

    Raises ValueError for a view that its user has released, and TypeError for the part of a message that was never made.
    """
    if type(part) is bytes:
        span.start = <const unsigned char *>PyBytes_AS_STRING(part)
        span.size = PyBytes_GET_SIZE(part)
    else:
        span.size = len(part)  # the check: what is below has none
        span.start = <const unsigned char *>PyMemoryView_GET_BUFFER(part).buf
    return 0


cdef inline bytes base_of(str name, object value, Py_ssize_t *at, Py_ssize_t *stop):
    """The bytes object that holds `value`, and where in it."""
    cdef bytes base
    if type(value) is not bytes:
        value = owned(name, value)
    cdef Span span
    span_of(value, &span)
    base = <bytes>value if type(value) is bytes else <bytes?>value.obj
    at[0] = <Py_ssize_t>span.start - <Py_ssize_t>PyBytes_AS_STRING(base)
    stop[0] = at[0] + span.size
    assert 0 <= at[0] <= stop[0] <= PyBytes_GET_SIZE(base)
    return base


cdef inline object cut(bytes base, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t threshold):
    """The part from `start` to `stop`: a copy if it is small, or much smaller than the memory that a view would pin."""
    cdef Py_ssize_t size = stop - start
    assert 0 <= start <= stop <= PyBytes_GET_SIZE(base)
    if size < threshold or size < PyBytes_GET_SIZE(base) - size:
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(base) + start, size) if size else EMPTY
    return memoryview(base)[start:stop]


# Byte by byte: correct on any machine, and compilers make a single swapped load of it.

cdef inline uint16_t load_u16(const unsigned char *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef inline uint32_t load_u32(const unsigned char *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline uint64_t load_u64(const unsigned char *p) noexcept nogil:
    return <uint64_t>load_u32(p) << 32 | load_u32(p + 4)


cdef inline void store_u16(unsigned char *p, uint16_t value) noexcept nogil:
    p[0] = <unsigned char>(value >> 8)
    p[1] = <unsigned char>value


cdef inline void store_u32(unsigned char *p, uint32_t value) noexcept nogil:
    store_u16(p, <uint16_t>(value >> 16))
    store_u16(p + 2, <uint16_t>value)


cdef inline void store_u64(unsigned char *p, uint64_t value) noexcept nogil:
    store_u32(p, <uint32_t>(value >> 32))
    store_u32(p + 4, <uint32_t>value)


# -- codecs: one whole frame ----------------------------------------------------------------------------------------


cdef class _Codec:
    """One frame at a time. A codec whose __init__ was not called has limit 0 and refuses everything."""

    cdef Py_ssize_t limit
    cdef Py_ssize_t threshold  # bytes of a part from which on it is a view
    cdef object digest
    cdef str name

    def decode_message(self, frame):
        """The one message that `frame` holds.

        Raises IncompleteMessage or TrailingBytes if it holds less or more than one, and MessageTooLarge.
        """
        return self.decode(frame)

    @cython.final
    cdef object decode(self, object frame):
        cdef Py_ssize_t at = 0, stop = 0
        cdef bytes base = base_of("frame", frame, &at, &stop)
        cdef Py_ssize_t available = stop - at
        cdef Py_ssize_t size = self.required(base, at, available, 0)
        if size > available:
            raise incomplete(self.name, available, size)
        if size < available:
            raise trailing(self.name, size, available)
        return self.parse(base, at, size, 0)

    cdef Py_ssize_t required(self, bytes base, Py_ssize_t at, Py_ssize_t available, uint64_t offset) except -1:
        """How many bytes the frame at `at` needs: all of it if its lengths are there, else up to its next length.

        The answer is larger than `available` as long as the frame is incomplete. `offset` is the frame's place in the
        stream, for the error. Raises MessageTooLarge.
        """
        raise NotImplementedError

    cdef object parse(self, bytes base, Py_ssize_t at, Py_ssize_t size, uint64_t offset):
        """The message of the complete frame of `size` bytes at `at`."""
        raise NotImplementedError


cdef class TwoPartCodec(_Codec):
    """TwoPartCodec(max_message_size=None, *, checksum=False, views=False)\n--\n\nTwo-part messages of at most `max_message_size` bytes, prefix included (None: no limit of its own).

    With `checksum` it writes the xxh3-64 of header and data, and verifies one that is not 0; else it writes 0 and does
    not look, as released Dynamos do. Raises InvalidConfig for a bad limit, or if xxhash is missing.

    With `views`, a large part of a message is a read-only memoryview of the received memory (see VIEW_THRESHOLD): it costs
    no copy, and keeps that memory as long as it lives. Without, every part is bytes.
    """

    def __init__(self, max_message_size=None, *, bint checksum=False, bint views=False):
        self.begin(max_message_size, checksum, views)

    cdef int begin(self, object max_message_size, bint checksum, bint views) except -1:
        self.name = "two-part message"
        self.limit = limit_of(max_message_size)
        self.threshold = view_threshold(views)
        self.digest = xxh3_64() if checksum else None
        return 0

    def encode_message(self, message):
        """The frame of `message`. Raises MessageTooLarge."""
        if not isinstance(message, TwoPartMessage):
            expect(message, TwoPartMessage)
        return encode_parts((<TwoPartMessage>message).header, (<TwoPartMessage>message).data, self.limit, self.digest)

    cdef Py_ssize_t required(self, bytes base, Py_ssize_t at, Py_ssize_t available, uint64_t offset) except -1:
        cdef const unsigned char *prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
        cdef uint64_t header_len, data_len, room
        if available < TWO_PART_PREFIX:
            return TWO_PART_PREFIX
        header_len = load_u64(prefix)
        data_len = load_u64(prefix + 8)
        room = <uint64_t>self.limit
        if header_len <= room and data_len <= room - header_len and TWO_PART_PREFIX <= room - header_len - data_len:
            return <Py_ssize_t>(TWO_PART_PREFIX + header_len + data_len)
        raise two_part_too_large(offset, header_len, data_len, self.limit)

    cdef object parse(self, bytes base, Py_ssize_t at, Py_ssize_t size, uint64_t offset):
        cdef const unsigned char *prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
        cdef Py_ssize_t start = at + TWO_PART_PREFIX
        cdef Py_ssize_t middle = start + <Py_ssize_t>load_u64(prefix)
        cdef Py_ssize_t stop = at + size
        if self.digest is not None:
            self.verify(base, start, stop, load_u64(prefix + 16), offset)
        return two_part_of(base, start, middle, stop, self.threshold)

    cdef int verify(self, bytes base, Py_ssize_t start, Py_ssize_t stop, uint64_t expected, uint64_t offset) except -1:
        cdef uint64_t actual
        if expected:
            actual = self.digest(memoryview(base)[start:stop])
            if actual != expected:
                raise checksum_mismatch(offset, expected, actual)
        return 0


cdef inline TwoPartMessage two_part_of(
    bytes base, Py_ssize_t start, Py_ssize_t middle, Py_ssize_t stop, Py_ssize_t threshold
):
    cdef TwoPartMessage message = TwoPartMessage.__new__(TwoPartMessage)
    message.header = cut(base, start, middle, threshold)
    message.data = cut(base, middle, stop, threshold)
    return message


cdef class TcpRequestCodec(_Codec):
    """TcpRequestCodec(max_message_size=None, *, views=False)\n--\n\nTCP request frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own).

    `views` is that of TwoPartCodec.
    """

    def __init__(self, max_message_size=None, *, bint views=False):
        self.name = "TCP request frame"
        self.limit = limit_of(max_message_size)
        self.threshold = view_threshold(views)

    def encode_message(self, message):
        """The frame of `message`. Raises MessageTooLarge, also for a part that does not fit its length field."""
        if not isinstance(message, TcpRequestMessage):
            expect(message, TcpRequestMessage)
        cdef TcpRequestMessage request = message
        cdef Span path, headers, payload
        span_of(request.endpoint_path, &path)
        span_of(request.headers, &headers)
        span_of(request.payload, &payload)
        if path.size > U16_MAX:
            raise part_too_large("endpoint_path", path.size, U16_MAX)
        if headers.size > U16_MAX:
            raise part_too_large("headers", headers.size, U16_MAX)
        if <uint64_t>payload.size > U32_MAX:
            raise part_too_large("payload", payload.size, U32_MAX)
        cdef Py_ssize_t lengths = 8 + path.size + headers.size
        if lengths > self.limit or payload.size > self.limit - lengths:
            raise request_too_large(None, path.size, headers.size, payload.size, self.limit)
        frame = PyBytes_FromStringAndSize(NULL, lengths + payload.size)
        cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(frame)
        store_u16(to, <uint16_t>path.size)
        memcpy(to + 2, path.start, path.size)
        store_u16(to + 2 + path.size, <uint16_t>headers.size)
        memcpy(to + 4 + path.size, headers.start, headers.size)
        store_u32(to + lengths - 4, <uint32_t>payload.size)
        memcpy(to + lengths, payload.start, payload.size)
        return frame

    cdef Py_ssize_t required(self, bytes base, Py_ssize_t at, Py_ssize_t available, uint64_t offset) except -1:
        cdef const unsigned char *frame = <const unsigned char *>PyBytes_AS_STRING(base) + at
        cdef Py_ssize_t path_len, headers_len, lengths
        cdef uint64_t payload_len
        if available < 2:
            return 2
        path_len = load_u16(frame)
        if available < path_len + 4:
            return path_len + 4
        headers_len = load_u16(frame + 2 + path_len)
        lengths = path_len + headers_len + 8
        if available < lengths:
            return lengths
        payload_len = load_u32(frame + lengths - 4)
        if lengths > self.limit or payload_len > <uint64_t>(self.limit - lengths):
            raise request_too_large(offset, path_len, headers_len, payload_len, self.limit)
        return lengths + <Py_ssize_t>payload_len

    cdef object parse(self, bytes base, Py_ssize_t at, Py_ssize_t size, uint64_t offset):
        cdef const unsigned char *start = <const unsigned char *>PyBytes_AS_STRING(base)
        cdef Py_ssize_t path_end = at + 2 + load_u16(start + at)
        cdef Py_ssize_t headers_end = path_end + 2 + load_u16(start + path_end)
        cdef TcpRequestMessage message = TcpRequestMessage.__new__(TcpRequestMessage)
        message.endpoint_path = cut(base, at + 2, path_end, self.threshold)
        message.headers = cut(base, path_end + 2, headers_end, self.threshold)
        message.payload = cut(base, headers_end + 4, at + size, self.threshold)
        return message


cdef class TcpResponseCodec(_Codec):
    """TcpResponseCodec(max_message_size=None, *, views=False)\n--\n\nTCP response frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own).

    `views` is that of TwoPartCodec.
    """

    def __init__(self, max_message_size=None, *, bint views=False):
        self.name = "TCP response frame"
        self.limit = limit_of(max_message_size)
        self.threshold = view_threshold(views)

    def encode_message(self, message):
        """The frame of `message`. Raises MessageTooLarge, also for data that does not fit its length field."""
        if not isinstance(message, TcpResponseMessage):
            expect(message, TcpResponseMessage)
        cdef Span data
        span_of((<TcpResponseMessage>message).data, &data)
        if <uint64_t>data.size > U32_MAX:
            raise part_too_large("data", data.size, U32_MAX)
        if self.limit < 4 or data.size > self.limit - 4:
            raise response_too_large(None, data.size, self.limit)
        frame = PyBytes_FromStringAndSize(NULL, 4 + data.size)
        cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(frame)
        store_u32(to, <uint32_t>data.size)
        memcpy(to + 4, data.start, data.size)
        return frame

    cdef Py_ssize_t required(self, bytes base, Py_ssize_t at, Py_ssize_t available, uint64_t offset) except -1:
        cdef uint64_t data_len
        if available < 4:
            return 4
        data_len = load_u32(<const unsigned char *>PyBytes_AS_STRING(base) + at)
        if self.limit < 4 or data_len > <uint64_t>(self.limit - 4):
            raise response_too_large(offset, data_len, self.limit)
        return 4 + <Py_ssize_t>data_len

    cdef object parse(self, bytes base, Py_ssize_t at, Py_ssize_t size, uint64_t offset):
        cdef TcpResponseMessage message = TcpResponseMessage.__new__(TcpResponseMessage)
        message.data = cut(base, at + 4, at + size, self.threshold)
        return message


cdef class MuxCodec(_Codec):
    """MuxCodec(max_message_size=None)\n--\n\nMux frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own)."""

    def __init__(self, max_message_size=None):
        self.name = "mux frame"
        self.limit = message_limit(max_message_size)

    def encode_message(self, message):
        """The frame of `message`. Raises MessageTooLarge, also for a body that does not fit its length field."""
        if not isinstance(message, MuxFrame):
            expect(message, MuxFrame)
        cdef MuxFrame frame = message
        cdef Span body
        span_of(frame.body, &body)
        if body.size > U24_MAX:
            raise part_too_large("body", body.size, U24_MAX)
        if self.limit < MUX_PREFIX or body.size > self.limit - MUX_PREFIX:
            raise mux_too_large(None, frame.stream, frame.kind, body.size, self.limit)
        return mux_frame(frame.stream, frame.kind, &body)

    cdef Py_ssize_t required(self, bytes base, Py_ssize_t at, Py_ssize_t available, uint64_t offset) except -1:
        cdef const unsigned char *prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
        cdef Py_ssize_t size
        if available < MUX_PREFIX:
            return MUX_PREFIX
        size = load_u32(prefix + 4) & U24_MAX
        if self.limit < MUX_PREFIX or size > self.limit - MUX_PREFIX:
            raise mux_too_large(offset, load_u32(prefix), prefix[4], size, self.limit)
        return MUX_PREFIX + size

    cdef object parse(self, bytes base, Py_ssize_t at, Py_ssize_t size, uint64_t offset):
        return mux_frame_of(base, at, size)


cdef inline MuxFrame mux_frame_of(bytes base, Py_ssize_t at, Py_ssize_t size):
    cdef const unsigned char *prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
    cdef MuxFrame frame = MuxFrame.__new__(MuxFrame)
    frame.stream = load_u32(prefix)
    frame.kind = prefix[4]
    frame.body = (<const char *>prefix)[MUX_PREFIX:size]
    return frame


cdef bytes mux_frame(uint32_t stream, uint32_t kind, Span *body):
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, MUX_PREFIX + body.size)
    put_mux(<unsigned char *>PyBytes_AS_STRING(frame), stream, kind, body.start, body.size)
    return frame


cdef inline unsigned char *put_mux(
    unsigned char *to, uint32_t stream, uint32_t kind, const unsigned char *start, Py_ssize_t size
) noexcept:
    """Write a frame; returns where the next one goes."""
    store_u32(to, stream)
    store_u32(to + 4, kind << 24 | <uint32_t>size)
    memcpy(to + MUX_PREFIX, start, size)
    return to + MUX_PREFIX + size


def encode_mux_frame(stream, kind, body=b""):
    """One mux frame, without an object. Raises what `MuxFrame` and `MuxCodec` raise."""
    cdef uint32_t number = field_of("stream", stream, U32_MAX), of_kind = field_of("kind", kind, U8_MAX)
    cdef Span span
    if type(body) is not bytes:
        body = borrowed("body", body)
    span_of(body, &span)
    if span.size > U24_MAX:
        raise part_too_large("body", span.size, U24_MAX)
    return mux_frame(number, of_kind, &span)


def encode_mux_items(stream, bodies, head=b"", tail=b""):
    """The frames of items of one stream, one after the other.

    An item is `head`, one of the bodies, and `tail`, as in `encode_data_frames`. One that is longer than `MUX_BODY_LIMIT`
    is cut. Raises TypeError if a part is not bytes-like, ValueError for a number that is none of a stream; MemoryError or
    OverflowError if there are more than memory can hold.
    """
    cdef uint32_t number
    if type(stream) is int and 0 <= stream <= U32_MAX:
        number = stream
    else:
        number = field_of("stream", stream, U32_MAX)
    cdef tuple parts = tuple(bodies)  # a copy: its sizes are relied upon
    cdef Span before, span, after
    if type(head) is not bytes:
        head = borrowed("head", head)
    if type(tail) is not bytes:
        tail = borrowed("tail", tail)
    span_of(head, &before)
    span_of(tail, &after)
    if before.size > PY_SSIZE_T_MAX // 4 - after.size:
        raise OverflowError("the frames are too long")
    cdef Py_ssize_t around = before.size + after.size, room = PY_SSIZE_T_MAX // 2, size, needed
    for part in parts:
        if type(part) is not bytes:
            parts = tuple([borrowed("data", each) for each in parts])
            break
    for part in parts:
        span_of(part, &span)
        if span.size > room - around:  # memory that is there many times may be longer than all memory
            raise OverflowError("the frames are too long")
        size = around + span.size
        needed = size + MUX_PREFIX * (1 if size <= mux_body_limit else (size + mux_body_limit - 1) // mux_body_limit)
        if needed > room:
            raise OverflowError("the frames are too long")
        room -= needed
    cdef bytes frames = PyBytes_FromStringAndSize(NULL, PY_SSIZE_T_MAX // 2 - room)
    cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(frames)
    cdef bytes item
    cdef const unsigned char *rest
    for part in parts:
        span_of(part, &span)
        size = around + span.size
        if size <= mux_body_limit:
            store_u32(to, number)
            store_u32(to + 4, mux_data << 24 | <uint32_t>size)
            to += MUX_PREFIX
            memcpy(to, before.start, before.size)
            memcpy(to + before.size, span.start, span.size)
            memcpy(to + before.size + span.size, after.start, after.size)
            to += size
            continue
        item = b"".join((head, part, tail))
        rest = <const unsigned char *>PyBytes_AS_STRING(item)
        while size > mux_body_limit:
            to = put_mux(to, number, mux_part, rest, mux_body_limit)
            rest += mux_body_limit
            size -= mux_body_limit
        to = put_mux(to, number, mux_data, rest, size)
    assert to == <unsigned char *>PyBytes_AS_STRING(frames) + PyBytes_GET_SIZE(frames)
    return frames


def mux_frames_within(frames, at, limit):
    """Where the last whole frame ends, of those from `at` on that have at most `limit` bytes together; `at` if none.

    `frames` are whole mux frames, one after the other, that this package has written. Raises TypeError and ValueError.
    """
    if type(frames) is not bytes:
        raise TypeError(f"frames must be bytes, not {type(frames).__name__}")
    cdef Py_ssize_t size = PyBytes_GET_SIZE(frames), end, stop, most
    cdef const unsigned char *start = <const unsigned char *>PyBytes_AS_STRING(frames)
    if not 0 <= at <= size:
        raise ValueError(f"there is no byte {at} in {size} bytes")
    end = stop = at
    most = max(0, min(limit, size - end))
    if most == size - end:
        return size
    most += end
    while stop <= most:
        end = stop
        if size - end < MUX_PREFIX:
            break
        stop = end + MUX_PREFIX + (load_u32(start + end + 4) & U24_MAX)
    return end


def encode_two_part(header, data):
    """The frame of a two-part message, without a message object: no limit, checksum 0. Raises TypeError."""
    if type(header) is not bytes:
        header = borrowed("header", header)
    if type(data) is not bytes:
        data = borrowed("data", data)
    return encode_parts(header, data, PY_SSIZE_T_MAX, None)


cdef TwoPartCodec COPYING = TwoPartCodec(), VIEWING = TwoPartCodec(views=True)


def decode_two_part(frame, *, bint views=False):
    """The message of a frame: what `TwoPartCodec(views=views).decode_message` returns and raises."""
    return VIEWING.decode(frame) if views else COPYING.decode(frame)


def encode_data_frames(bodies, head=b"", tail=b""):
    """The frames of messages without a header, one after the other, as a response stream carries its items.

    The data of each is `head`, one of the bodies, and `tail`: what all of them have in common need not be put around
    each of them first. No limit, checksum 0. Raises TypeError if one of them is not bytes-like; MemoryError or
    OverflowError if there are more than memory can hold.
    """
    cdef tuple parts = tuple(bodies)  # a copy: its sizes are relied upon
    cdef Span before, span, after
    if type(head) is not bytes:
        head = borrowed("head", head)
    if type(tail) is not bytes:
        tail = borrowed("tail", tail)
    span_of(head, &before)
    span_of(tail, &after)
    if before.size > PY_SSIZE_T_MAX - TWO_PART_PREFIX - after.size:
        raise OverflowError("the frames are too long")
    cdef Py_ssize_t around = before.size + after.size, room = PY_SSIZE_T_MAX, left
    for part in parts:
        if type(part) is not bytes:
            parts = tuple([borrowed("data", each) for each in parts])
            break
    for part in parts:
        span_of(part, &span)
        left = room - TWO_PART_PREFIX - around
        if span.size > left:  # memory that is there many times may be longer than all memory
            raise OverflowError("the frames are too long")
        room = left - span.size
    cdef Py_ssize_t size = PY_SSIZE_T_MAX - room
    cdef bytes frames = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(frames)
    for part in parts:
        span_of(part, &span)
        store_u64(to, 0)
        store_u64(to + 8, <uint64_t>(around + span.size))
        store_u64(to + 16, 0)
        to += TWO_PART_PREFIX
        memcpy(to, before.start, before.size)
        memcpy(to + before.size, span.start, span.size)
        memcpy(to + before.size + span.size, after.start, after.size)
        to += around + span.size
    assert to == <unsigned char *>PyBytes_AS_STRING(frames) + size
    return frames


cdef bytes encode_parts(object header_part, object data_part, Py_ssize_t limit, object digest):
    cdef Span header, data
    span_of(header_part, &header)
    span_of(data_part, &data)
    cdef Py_ssize_t room = limit - TWO_PART_PREFIX
    if header.size > room or data.size > room - header.size:
        raise two_part_too_large(None, header.size, data.size, limit)
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, TWO_PART_PREFIX + header.size + data.size)
    cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(frame)
    memcpy(to + TWO_PART_PREFIX, header.start, header.size)
    memcpy(to + TWO_PART_PREFIX + header.size, data.start, data.size)
    store_u64(to, <uint64_t>header.size)
    store_u64(to + 8, <uint64_t>data.size)
    store_u64(to + 16, 0)
    if digest is not None:
        store_u64(to + 16, digest(memoryview(frame)[TWO_PART_PREFIX:]))
    return frame


# -- decoders: a stream of frames, in chunks of any size ------------------------------------------------------------


cdef class _Decoder:
    """Finds the messages in a stream that comes in chunks.

    Complete frames are parsed where they lie. What is left of a chunk is copied to `held`, a single buffer that holds
    one incomplete message and grows with the bytes that came; it becomes the bytes object that is parsed, without a copy.
    """

    cdef _Codec codec
    cdef PyObject *held  # a bytes object without another reference, hence still mutable; NULL if nothing is pending
    cdef readonly Py_ssize_t pending
    cdef uint64_t offset  # of the first byte that is neither decoded nor held
    cdef readonly object failed

    def __dealloc__(self):
        Py_XDECREF(self.held)

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: it is a place in a stream")

    @property
    @cython.critical_section
    def expected(self):
        """Bytes of the incomplete message, as far as its lengths have come; 0 if none is pending."""
        return self.codec.required(<bytes>self.held, 0, self.pending, 0) if self.pending else 0

    @cython.critical_section
    def feed(self, chunk):
        """The messages that `chunk` completes, in order.

        A bad frame breaks the stream for good: the messages before it are returned, `failed` is set, and the error is
        raised by this call if there were none, and by every later call. Raises MessageTooLarge or ChecksumMismatch,
        and TypeError if `chunk` is not bytes-like.
        """
        self.check()
        cdef Py_ssize_t at = 0, stop = 0
        cdef bytes base = base_of("chunk", chunk, &at, &stop)
        cdef list messages = []
        self.take(base, at, stop, messages)
        return messages

    cdef int take(self, bytes base, Py_ssize_t at, Py_ssize_t stop, list messages) except -1:
        try:
            if self.pending:
                at = self.resume(base, at, stop, messages)
            self.run(base, at, stop, messages)
        except CodecError as error:
            self.fail(error)
            if not messages:
                raise
        except BaseException:
            self.fail(interrupted(self.offset))
            raise
        return 0

    cdef int check(self) except -1:
        if self.codec is None:
            raise TypeError(f"{type(self).__name__}.__init__() was not called")
        if self.failed is not None:
            # Without the traceback of the last time, or it would grow with every call.
            raise self.failed.with_traceback(None)
        return 0

    cdef int fail(self, object error) except -1:
        self.failed = error
        self.release()
        return 0

    cdef int run(self, bytes base, Py_ssize_t at, Py_ssize_t stop, list messages) except -1:
        """Parse the complete frames from `at` on, and hold what follows them."""
        cdef Py_ssize_t size
        while at < stop:
            size = self.codec.required(base, at, stop - at, self.offset)
            if size > stop - at:
                self.hold(base, at, stop - at, size)
                break
            messages.append(self.codec.parse(base, at, size, self.offset))
            at += size
            self.offset += <uint64_t>size
        return 0

    cdef Py_ssize_t resume(self, bytes base, Py_ssize_t at, Py_ssize_t stop, list messages) except -1:
        """Complete the held frame; return where the rest of the chunk starts (`stop` if the frame wants more)."""
        cdef uint64_t start = self.offset - <uint64_t>self.pending
        cdef Py_ssize_t size, piece
        while True:
            size = self.codec.required(<bytes>self.held, 0, self.pending, start)
            if size <= self.pending:
                messages.append(self.codec.parse(self.release(), 0, size, start))
                return at
            if at == stop:
                return at
            piece = min(stop - at, size - self.pending)
            self.hold(base, at, piece, size)
            at += piece

    cdef int hold(self, bytes base, Py_ssize_t at, Py_ssize_t piece, Py_ssize_t size) except -1:
        """Add a piece of `base` to the held bytes, which are on their way to `size`.

        The buffer doubles, up to `size`: linear time, and never more than twice the bytes that came. `size` itself is
        only what the peer says.
        """
        cdef Py_ssize_t wanted = self.pending + piece
        assert 0 < piece <= PyBytes_GET_SIZE(base) - at
        if self.held is NULL:
            self.held = _new_bytes(NULL, wanted)
        elif wanted > _bytes_size(self.held):
            # Not below `wanted`, whatever `size` is: another thread may have fed this decoder during a digest.
            _PyBytes_Resize(&self.held, max(wanted, size if wanted > size // 2 else 2 * self.pending))
        assert wanted <= _bytes_size(self.held)
        memcpy(_bytes_at(self.held) + self.pending, PyBytes_AS_STRING(base) + at, piece)
        self.pending = wanted
        self.offset += <uint64_t>piece
        return 0

    cdef bytes release(self):
        """The held bytes, no longer held."""
        cdef bytes frame = EMPTY
        if self.held is not NULL:
            frame = <bytes>self.held
            Py_XDECREF(self.held)
            self.held = NULL
        self.pending = 0
        return frame


cdef int move_data(list messages, list data) except -1:
    """Move the data of the first messages, as far as they have nothing else, from `messages` to `data`."""
    cdef Py_ssize_t count = 0
    cdef TwoPartMessage message
    for message in messages:
        if len(message.header) or not len(message.data):
            break
        data.append(message.data)
        count += 1
    del messages[:count]
    return 0


cdef class TwoPartDecoder(_Decoder):
    """TwoPartDecoder(max_message_size=None, *, checksum=False, views=False)\n--\n\nA stream of two-part messages; the arguments are those of TwoPartCodec."""

    def __init__(self, max_message_size=None, *, bint checksum=False, bint views=False):
        cdef TwoPartCodec codec = TwoPartCodec.__new__(TwoPartCodec)
        codec.begin(max_message_size, checksum, views)
        self.codec = codec

    @cython.critical_section
    def feed_data(self, chunk):
        """As `feed`, for a stream of items: `(data, messages)`.

        `data` is that of the messages up to the first one that has a header, or nothing; `messages` are that one and those
        after it. The error is raised by this call if both are empty.
        """
        self.check()
        cdef Py_ssize_t at = 0, stop = 0
        cdef bytes base = base_of("chunk", chunk, &at, &stop)
        cdef list data = [], messages = []
        try:
            if self.pending:
                at = self.resume(base, at, stop, messages)
                move_data(messages, data)
            if not messages:
                at = self.run_data(base, at, stop, data)
            self.run(base, at, stop, messages)
        except CodecError as error:
            self.fail(error)
            if not messages and not data:
                raise
        except BaseException:
            self.fail(interrupted(self.offset))
            raise
        if messages:
            move_data(messages, data)
        return data, messages

    cdef Py_ssize_t run_data(self, bytes base, Py_ssize_t at, Py_ssize_t stop, list data) except -1:
        """Take the data of the frames from `at` on that `run` would look at once, and that have nothing else; the end."""
        cdef const unsigned char *prefix
        cdef uint64_t data_len
        cdef Py_ssize_t largest, end
        if self.codec.digest is not None:
            return at
        while True:
            largest = min(stop - at, self.codec.limit)
            if largest < TWO_PART_PREFIX:
                return at
            prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
            data_len = load_u64(prefix + 8)
            if load_u64(prefix) or not data_len or data_len > <uint64_t>(largest - TWO_PART_PREFIX):
                return at
            end = at + TWO_PART_PREFIX + <Py_ssize_t>data_len
            data.append(cut(base, at + TWO_PART_PREFIX, end, self.codec.threshold))
            self.offset += <uint64_t>(end - at)
            at = end

    cdef int run(self, bytes base, Py_ssize_t at, Py_ssize_t stop, list messages) except -1:
        """As it is for all formats, after the frames that need nothing of it: complete, good, and not to be verified."""
        cdef const unsigned char *prefix
        cdef uint64_t header_len, data_len, room
        cdef Py_ssize_t largest, middle, end
        if self.codec.digest is None:
            while True:
                largest = min(stop - at, self.codec.limit)
                if largest < TWO_PART_PREFIX:
                    break
                prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
                header_len = load_u64(prefix)
                data_len = load_u64(prefix + 8)
                room = <uint64_t>(largest - TWO_PART_PREFIX)
                if header_len > room or data_len > room - header_len:
                    break
                middle = at + TWO_PART_PREFIX + <Py_ssize_t>header_len
                end = middle + <Py_ssize_t>data_len
                messages.append(two_part_of(base, at + TWO_PART_PREFIX, middle, end, self.codec.threshold))
                self.offset += <uint64_t>(end - at)
                at = end
        return _Decoder.run(self, base, at, stop, messages)


cdef class TcpRequestDecoder(_Decoder):
    """TcpRequestDecoder(max_message_size=None, *, views=False)\n--\n\nA stream of TCP request frames; the arguments are those of TcpRequestCodec."""

    def __init__(self, max_message_size=None, *, bint views=False):
        self.codec = TcpRequestCodec(max_message_size, views=views)


cdef class TcpResponseDecoder(_Decoder):
    """TcpResponseDecoder(max_message_size=None, *, views=False)\n--\n\nA stream of acknowledgements; the arguments are those of TcpResponseCodec."""

    def __init__(self, max_message_size=None, *, bint views=False):
        self.codec = TcpResponseCodec(max_message_size, views=views)


cdef class MuxDecoder(_Decoder):
    """MuxDecoder(max_message_size=None)\n--\n\nA stream of mux frames; the argument is that of MuxCodec."""

    def __init__(self, max_message_size=None):
        self.codec = MuxCodec(max_message_size)

    @cython.critical_section
    def feed_items(self, chunk, dict sinks):
        """As `feed`, for streams of items: `(taken, frames)`.

        The body of a DATA frame goes to the function that `sinks` has for its stream, if it is not empty; `taken` says how
        many bytes of such frames each stream had. `frames` are the others. The order within a stream is kept: a frame of
        another kind removes its stream from `sinks`. The error is raised by this call if both are empty.
        """
        self.check()
        cdef Py_ssize_t at = 0, stop = 0
        cdef bytes base = base_of("chunk", chunk, &at, &stop)
        cdef list resumed = [], frames = []
        cdef dict taken = {}
        cdef MuxFrame frame
        try:
            if self.pending:
                at = self.resume(base, at, stop, resumed)
                for frame in resumed:
                    deliver(frame, sinks, taken, frames)
            at = self.run_items(base, at, stop, sinks, taken, frames)
            if at < stop:
                self.run(base, at, stop, frames)  # it holds what there is, or fails
        except CodecError as error:
            self.fail(error)
            if not frames and not taken:
                raise
        except BaseException:
            self.fail(interrupted(self.offset))
            raise
        return taken, frames

    cdef Py_ssize_t run_items(
        self, bytes base, Py_ssize_t at, Py_ssize_t stop, dict sinks, dict taken, list frames
    ) except -1:
        """Take the complete frames from `at` on, as far as they are not too long; returns where the next one begins."""
        cdef const unsigned char *prefix
        cdef Py_ssize_t largest, size
        while True:
            largest = min(stop - at, self.codec.limit)
            if largest < MUX_PREFIX:
                return at
            prefix = <const unsigned char *>PyBytes_AS_STRING(base) + at
            size = MUX_PREFIX + (load_u32(prefix + 4) & U24_MAX)
            if size > largest:
                return at
            deliver(mux_frame_of(base, at, size), sinks, taken, frames)
            self.offset += <uint64_t>size
            at += size


cdef inline int deliver(MuxFrame frame, dict sinks, dict taken, list frames) except -1:
    number = frame.stream
    sink = sinks.get(number)
    if sink is None:
        frames.append(frame)
    elif frame.kind == mux_data and len(frame.body):
        sink(frame.body)
        before = taken.get(number)
        taken[number] = MUX_PREFIX + len(frame.body) + (<Py_ssize_t>before if before is not None else 0)
    else:
        del sinks[number]
        frames.append(frame)
    return 0
