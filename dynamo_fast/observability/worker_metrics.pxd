# The types with which Cython translates `worker_metrics.py`.
cimport cython

from dynamo_fast.observability.histogram cimport Histogram

@cython.final
cdef class EndpointMetrics:
    cdef public long long requests
    cdef public long long inflight
    cdef public long long request_bytes
    cdef public long long response_bytes
    cdef public long long cancellations
    cdef readonly Histogram duration
    cdef readonly dict labels
    cdef readonly dict errors
