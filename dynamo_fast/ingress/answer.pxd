# The types with which Cython translates `answer.py`.
cimport cython

from dynamo_fast.ingress._cork cimport Cork
from dynamo_fast.ingress.response_connection cimport ResponseConnection

@cython.final
cdef class Batch:
    cdef public object items

@cython.final
cdef class Answer:
    cdef readonly object _endpoint
    cdef readonly ResponseConnection _stream
    cdef readonly object _codec
    cdef readonly bint _has_dropped

    cpdef object refuse_request(self, object error)
    cpdef object refuse_shutdown(self)
    cpdef object start(self, object request, object context)
    cdef object _refuse(self, str text, object error)
    @cython.locals(stream=ResponseConnection)
    cdef object _send(self, object item)
    @cython.locals(stream=ResponseConnection, corked=Cork)
    cdef bint _send_batch(self, object items) except -1
    cdef object _unserialisable(self, object error)
    cdef object _failed(self, object error)
