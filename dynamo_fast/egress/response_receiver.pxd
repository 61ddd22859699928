# The types with which Cython translates `response_receiver.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.observability.metrics cimport RequestTiming

cdef class ResponseReceiver

cdef class StreamOwner:
    cdef readonly object loop
    cdef public object address
    cdef readonly Deadlines call_home
    cdef readonly Deadlines orphans

    cpdef forget(self, ResponseReceiver receiver)
    cpdef forget_input(self, sender)

@cython.final
cdef class ResponseReceiver:
    cdef readonly bint _acknowledged
    cdef readonly object _connection
    cdef readonly RequestTiming _first
    cdef readonly object _inactivity
    cdef readonly object _inactivity_timer
    cdef readonly StreamOwner _owner
    cdef readonly Deadlines _call_home
    cdef readonly Deadlines _orphans
    cdef readonly bint _ready
    cdef readonly object _request_connection
    cdef readonly object _silent_since
    cdef readonly RequestTiming _timing
    cdef readonly list _waiters
    cdef readonly object _reader
    cdef readonly Context context
    cdef readonly bint ended
    cdef public object error
    cdef public object established
    cdef readonly object frames
    cdef public object input_error
    cdef public object instance
    cdef public object offer
    cdef public object sender
    cdef readonly object subject
    cdef public Py_ssize_t unread

    cpdef follow(self, RequestTiming timing)
    cpdef bint is_settled(self) except -1
    cpdef acknowledged(self, bytes text, connection)
    cpdef _forget_request_connection(self)
    cpdef dialled(self, connection)
    cpdef ready(self)
    cpdef _establish_if_complete(self)
    cpdef arrived(self, Py_ssize_t size)
    cpdef wake(self)
    cpdef _wait_for_frames(self)
    cpdef readable(self)
    cpdef listen(self, reader)
    cpdef end(self, error=*)
    cpdef drop(self)
