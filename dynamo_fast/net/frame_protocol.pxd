# The types with which Cython translates `frame_protocol.py`.
from dynamo_fast._native cimport Native

cdef class FrameProtocol(Native):
    cdef public object _decoder
    cdef public object _transport

    cpdef message_received(self, message)
    cpdef stream_failed(self, error)
    cpdef bytes_refused(self, bytes data)
    cpdef read_finished(self, Py_ssize_t size)

cdef class DataFrameProtocol(FrameProtocol):
    cdef public object _sink
