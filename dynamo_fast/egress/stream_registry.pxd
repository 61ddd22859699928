# The types with which Cython translates `stream_registry.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.net.descriptors cimport Descriptors
from dynamo_fast.wire.ids cimport random_uuid

cdef class StreamRegistry:
    cdef object __weakref__
    cdef readonly object loop
    cdef readonly object config
    cdef public object address
    cdef readonly Deadlines call_home
    cdef readonly Deadlines orphans
    cdef readonly set connections
    cdef readonly Deadlines strangers
    cdef readonly object offer
    cdef readonly dict sessions
    cdef public Py_ssize_t multiplexed
    cdef public long long forgotten
    cdef public long long strangers_reset
    cdef readonly Py_ssize_t _max_streams
    cdef public Py_ssize_t max_strangers
    cdef readonly double _warn_after
    cdef readonly dict _waiting
    cdef readonly dict _inputs
    cdef readonly dict _tombstones
    cdef readonly dict _refusals
    cdef readonly bint _closed

    @cython.locals(receiver=ResponseReceiver, sockets=Py_ssize_t)
    cpdef ResponseReceiver register(self, Context context, established=*, mux=*)
    @cython.locals(receiver=ResponseReceiver)
    cpdef bint associate_instance(self, subject, instance) except -1
    cpdef bint _is_tombstoned(self, instance) except -1

cdef Descriptors _PROCESS
cdef _promise_descriptor()
