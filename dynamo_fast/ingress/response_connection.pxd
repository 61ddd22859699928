# The types with which Cython translates `response_connection.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.ingress._cork cimport Cork
from dynamo_fast.wire.stream cimport StreamMachine, classify, worker

@cython.final
cdef class ResponseConnection:
    cdef object __weakref__
    cdef readonly Context _context
    cdef readonly object _decoder
    cdef readonly object _dialler
    cdef readonly list _frames
    cdef readonly StreamMachine _machine
    cdef readonly bint _peer_finished
    cdef readonly object _request
    cdef readonly object _room
    cdef readonly object _transport
    cdef readonly bytes _head
    cdef readonly bytes _tail
    cdef public bint abandoned
    cdef readonly Py_ssize_t bytes
    cdef readonly Cork corked
    cdef readonly str _end
    cdef readonly object _ended_in
    cdef readonly Py_ssize_t items
    cdef public object number
    cdef public bint open
    cdef readonly bint orderly

    cpdef object dialled(self, object transport)
    cpdef object not_dialled(self, object error)
    cpdef object start(self)
    cpdef object refuse(self, object prologue)
    cpdef bint send(self, bytes item) except -1
    cpdef object cork(self, bytes item)
    cpdef bint uncork(self) except -1
    cpdef bint has_corked(self) except -1
    cpdef object abandon(self)
    cpdef object finish(self, bytes final)
    cpdef object message_received(self, object message)
    cpdef object told(self, object event)
    cpdef object stream_failed(self, object error)
    cpdef object eof_received(self)
    cpdef object connection_lost(self, object error)
    @cython.locals(machine=StreamMachine)
    cpdef object _step(self, object event, str end, bytes frames=*)
    @cython.locals(young=Deadlines)
    cdef object _begins(self)
    cdef object _keep(self, bytes frames)
    @cython.locals(closing=Deadlines)
    cdef object _ends(self)
    @cython.locals(data=list, frames=bytes)
    cdef object _frame_plain(self)
    @cython.locals(frames=list)
    cpdef object flush(self, bytes end=*)
    cdef object _wake(self)
    cdef object _abort(self)

@cython.final
cdef class Uncorking:
    cdef object __weakref__
    cdef readonly ResponseConnection _stream
    cdef readonly object _coroutine
    cdef readonly object request

    cpdef object send(self, object value)
    cpdef object close(self)
