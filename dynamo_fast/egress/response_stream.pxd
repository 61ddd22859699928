# The types with which Cython translates `response_stream.py`.
cimport cython

from dynamo_fast.egress._items cimport Items, begin
from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.observability.metrics cimport RequestPlaneMetrics

@cython.final
cdef class ResponseStream(Items):
    cdef readonly object loop
    cdef readonly RequestPlaneMetrics _metrics
    cdef readonly double _patience
    cdef object __weakref__

    @cython.locals(receiver=ResponseReceiver)
    cpdef _finish(self)
    @cython.locals(receiver=ResponseReceiver)
    cpdef _close(self)
