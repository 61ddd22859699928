# The types with which Cython translates `response_connection.py`.
cimport cython

from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.egress.response_receiver cimport ResponseReceiver, StreamOwner
from dynamo_fast.net.frame_protocol cimport DataFrameProtocol
from dynamo_fast.wire.control cimport usual_subject
from dynamo_fast.wire.stream cimport StreamMachine, classify, requester

cdef class ConnectionOwner(StreamOwner):
    cdef readonly object config
    cdef readonly set connections
    cdef readonly Deadlines strangers
    cdef public Py_ssize_t max_strangers
    cdef public long long strangers_reset

    cpdef ResponseReceiver take(self, subject)

cdef class ResponseConnection(DataFrameProtocol):
    cdef readonly StreamMachine _machine
    cdef readonly bint _paused
    cdef readonly ResponseReceiver _receiver
    cdef readonly ConnectionOwner _server

    cpdef _wake(self, ResponseReceiver receiver, Py_ssize_t size)
    cpdef _receive_handshake(self, message)
    cpdef _receive_unusual_handshake(self, message)
    cpdef _receive_prologue(self, message)
    @cython.locals(receiver=ResponseReceiver)
    cpdef step(self, event, detail=*)
