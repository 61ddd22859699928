# The types with which Cython translates `pool.py`.
cimport cython

from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.net.frame_protocol cimport FrameProtocol
from dynamo_fast.observability.metrics cimport RequestPlaneMetrics

cdef class WorkerPool
cdef class PooledConnection(FrameProtocol)

@cython.final
cdef class PendingRequest:
    cdef readonly WorkerPool _pool
    cdef readonly PooledConnection connection
    cdef readonly bytes frame
    cdef readonly object listener
    cdef readonly bint _timed_out

    cpdef bint is_over(self) except -1
    cpdef acknowledge(self, bytes text, connection)

@cython.final
cdef class WorkerPool:
    cdef readonly object _client
    cdef readonly object loop
    cdef readonly RequestPlaneMetrics metrics
    cdef readonly Deadlines deadlines
    cdef readonly object _connect_task
    cdef readonly object _port
    cdef readonly double _last_used
    cdef readonly Py_ssize_t _next
    cdef readonly object _waiting
    cdef readonly list connections
    cdef readonly object host
    cdef readonly object peer

    @cython.locals(connection=PooledConnection)
    cpdef submit(self, PendingRequest request)
    cpdef dispatch(self)
    @cython.locals(count=Py_ssize_t, offset=Py_ssize_t, index=Py_ssize_t, connection=PooledConnection)
    cpdef PooledConnection _with_room(self)

@cython.final
cdef class PooledConnection(FrameProtocol):
    cdef readonly WorkerPool _pool
    cdef readonly Py_ssize_t _most
    cdef readonly object _unacknowledged
    cdef readonly list _gathered
    cdef readonly bint _paused
    cdef readonly set _on_lost
    cdef readonly bint retired
    cdef readonly object _failure

    cpdef bint has_room(self) except -1
    cpdef bint is_full(self) except -1
    @cython.locals(frame=bytes)
    cpdef send(self, PendingRequest request)
    cdef _gather(self, bytes frame)
    @cython.locals(gathered=list)
    cpdef _flush(self)
    @cython.locals(request=PendingRequest)
    cdef _acknowledge(self, bytes text)
