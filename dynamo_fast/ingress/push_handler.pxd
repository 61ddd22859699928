# The types with which Cython translates `push_handler.py`.
cimport cython

from dynamo_fast.ingress.admission cimport Admission
from dynamo_fast.ingress.request cimport Request
from dynamo_fast.ingress.response_connection cimport ResponseConnection
from dynamo_fast.observability.histogram cimport Histogram
from dynamo_fast.observability.worker_metrics cimport EndpointMetrics

@cython.final
cdef class PushHandler:
    cdef object __weakref__
    cdef readonly object endpoint
    cdef readonly object worker
    cdef readonly EndpointMetrics metrics
    cdef readonly bint bidirectional
    cdef readonly object addresses
    cdef readonly object tracer
    cdef public bint cancelled
    cdef public object _handler
    cdef readonly bint _takes_context
    cdef readonly bint pushes
    cdef readonly object _drained
    cdef readonly set _running
    cdef readonly Py_ssize_t _items_sent

    @cython.locals(request=Request, admission=Admission)
    cpdef object accept(self, object payload, object headers)
    cpdef object call(self, object request, object context, object sender=*)
    @cython.locals(request=Request)
    cpdef object began(self, Request request)
    @cython.locals(stream=ResponseConnection, metrics=EndpointMetrics, seconds=double)
    cpdef object ended(self, Request request)
    @cython.locals(stream=ResponseConnection)
    cdef object _log(self, int level, Request request, double seconds)

cdef object _observe_transit(Histogram histogram, object headers)
