# The types with which Cython translates `push_handler.py`.
cimport cython

from dynamo_fast.ingress.cancellation cimport Cancellation
from dynamo_fast.ingress.request cimport Request
from dynamo_fast.ingress.response_connection cimport ResponseConnection

@cython.final
cdef class PushHandler:
    cdef object __weakref__
    cdef readonly object endpoint
    cdef readonly object worker
    cdef readonly object metrics
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

    cpdef object call(self, object request, object context, object sender=*)
    @cython.locals(request=Request)
    cpdef object began(self, Request request)
    @cython.locals(stream=ResponseConnection, cancellation=Cancellation, seconds=double)
    cpdef object ended(self, Request request)
    @cython.locals(stream=ResponseConnection)
    cdef object _log(self, int level, Request request, double seconds)

cdef object _observe_transit(object histogram, object headers)
