# The types with which Cython translates `metrics.py`.
cimport cython

from dynamo_fast.observability.histogram cimport Histogram

@cython.final
cdef class RequestPlaneMetrics:
    cdef public long long inflight
    cdef readonly Histogram queue
    cdef readonly Histogram send
    cdef readonly Histogram roundtrip_ttft
    cdef readonly Histogram transport_roundtrip
    cdef public long long tcp_bytes_sent
    cdef public long long tcp_bytes_received
    cdef public long long tcp_errors
    cdef public long long tcp_accept_backoffs
    cdef public long long nats_errors
    cdef readonly Histogram route

@cython.final
cdef class RequestTiming:
    cdef readonly RequestPlaneMetrics _metrics
    cdef readonly double _called
    cdef readonly double _sent

    cpdef sending(self)
    cpdef acknowledged(self)
    @cython.locals(now=double)
    cpdef first_item(self)
