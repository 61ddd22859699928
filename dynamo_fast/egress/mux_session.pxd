# The types with which Cython translates `mux_session.py`.
cimport cython

from dynamo_fast.egress.response_connection cimport ConnectionOwner, ResponseConnection
from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.wire.stream cimport StreamMachine, requester

cdef class SessionOwner(ConnectionOwner):
    cdef readonly dict sessions
    cdef public Py_ssize_t multiplexed
    cdef public long long forgotten

@cython.final
cdef class MuxSession:
    cdef object __weakref__
    cdef readonly Py_ssize_t _answers
    cdef readonly object _decoder
    cdef readonly bint _flush_is_due
    cdef readonly bint _is_blocked
    cdef readonly object _last
    cdef readonly Py_ssize_t _may_be_ignored
    cdef readonly list _out
    cdef readonly bint _over
    cdef readonly Py_ssize_t _owed
    cdef readonly object _seen
    cdef readonly SessionOwner _server
    cdef readonly dict _sinks
    cdef readonly object _transport
    cdef readonly Py_ssize_t _unanswered
    cdef readonly Py_ssize_t _unknown
    cdef readonly Py_ssize_t ignored
    cdef readonly object name
    cdef readonly Py_ssize_t stream_window
    cdef readonly dict streams

    @cython.locals(stream=MuxStream, taken=dict, frames=list)
    cpdef data_received(self, bytes data)
    cpdef _give_credit(self, Py_ssize_t size)
    @cython.locals(stream=MuxStream)
    cpdef _receive(self, frame)
    @cython.locals(stream=MuxStream)
    cpdef _open(self, frame)
    cpdef write(self, bytes frame)
    cpdef write_last(self, number, int kind)
    cpdef set_sink(self, number, sink)
    cpdef forget(self, number)
    @cython.locals(out=list)
    cpdef _flush(self)

cdef class MuxStream(ResponseConnection):
    cdef readonly Py_ssize_t _half
    cdef readonly object _number
    cdef readonly Py_ssize_t _owed
    cdef readonly list _parts
    cdef readonly Py_ssize_t _parts_size
    cdef readonly MuxSession _session
    cdef readonly Py_ssize_t _window

    @cython.locals(size=Py_ssize_t)
    cpdef receive(self, int kind, body)
    @cython.locals(size=Py_ssize_t, limit=Py_ssize_t, total=Py_ssize_t)
    cpdef _receive_part(self, int kind, body)
    @cython.locals(receiver=ResponseReceiver)
    cpdef took(self, Py_ssize_t size)
    cpdef resume_reading(self)
    @cython.locals(machine=StreamMachine, session=MuxSession, receiver=ResponseReceiver, takes_items=bint)
    cpdef step(self, event, detail=*)
