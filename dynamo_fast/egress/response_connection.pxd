# The types with which Cython translates `response_connection.py`.
cimport cython

from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.net.frame_protocol cimport DataFrameProtocol
from dynamo_fast.wire.stream cimport StreamMachine

cdef class ResponseConnection(DataFrameProtocol):
    cdef readonly StreamMachine _machine
    cdef readonly bint _paused
    cdef readonly ResponseReceiver _receiver
    cdef readonly object _server

    cpdef _wake(self, ResponseReceiver receiver, Py_ssize_t size)
    cpdef _receive_handshake(self, message)
    cpdef _receive_prologue(self, message)
    @cython.locals(receiver=ResponseReceiver)
    cpdef step(self, event, detail=*)
