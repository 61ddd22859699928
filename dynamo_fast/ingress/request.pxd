# The types with which Cython translates `request.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.ingress.admission cimport Admission
from dynamo_fast.ingress.answer cimport Answer
from dynamo_fast.ingress.cancellation cimport Cancellation
from dynamo_fast.ingress.dialler cimport Dialler
from dynamo_fast.ingress.response_connection cimport ResponseConnection, Uncorking
from dynamo_fast.observability.histogram cimport Histogram

@cython.final
cdef class Request:
    cdef object __weakref__
    cdef readonly Answer _answer
    cdef readonly object _control
    cdef readonly object _info
    cdef readonly object _input
    cdef readonly object _input_info
    cdef readonly object _message
    cdef readonly object _offer
    cdef readonly double accepted_at
    cdef readonly Cancellation cancellation
    cdef readonly Context context
    cdef public Py_ssize_t descriptors
    cdef readonly object endpoint
    cdef public Py_ssize_t size
    cdef readonly ResponseConnection stream

    cpdef Uncorking run(self)
    cdef object _consider(self, object offer, Dialler dialler)
    cdef object _ended(self)
    @cython.locals(admission=Admission, dialler=Dialler)
    cdef object _dial_directly(self)
    @cython.locals(first_response=Histogram)
    cdef object _start(self)
    @cython.locals(admission=Admission)
    cdef object _decode(self)
    cdef object _checked_input(self, object message)

cdef object _context(object endpoint, object control, object headers)
cdef object _two_part(object payload)
