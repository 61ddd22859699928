# The types with which Cython translates `tcp_client.py`.
cimport cython

from dynamo_fast._native cimport Native
from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.egress.pool cimport PendingRequest, WorkerPool
from dynamo_fast.observability.metrics cimport RequestPlaneMetrics
from dynamo_fast.wire.headers cimport encode_headers

cdef class TcpRequestClient(Native):
    cdef object __weakref__
    cdef readonly object loop
    cdef readonly object config
    cdef readonly RequestPlaneMetrics metrics
    cdef readonly object connects
    cdef readonly object connector
    cdef readonly object _codec
    cdef readonly Deadlines deadlines
    cdef readonly dict _pools
    cdef readonly object _idle_timer
    cdef readonly bint _closed

    @cython.locals(pool=WorkerPool, request=PendingRequest)
    cpdef send(self, address, bytes payload, bytes headers, listener)
    @cython.locals(now=cython.longlong)
    cpdef bytes _frame(self, target, bytes payload, bytes headers)
