# The types with which Cython translates `context.py`.

from dynamo_fast.wire.ids cimport random_uuid

cdef class Context:
    cdef object __weakref__
    cdef readonly object _id
    cdef readonly dict _metadata
    cdef readonly dict _trace_headers
    cdef public object parent_span_id
    cdef readonly bint _stopped
    cdef readonly bint _killed
    cdef readonly dict _callbacks
    cdef readonly list _watchers
    cdef readonly bint _needs_no_escape

    cpdef id(self)
    cpdef bint id_needs_no_escape(self) except -1
    cpdef trace_headers(self)
    cpdef bint is_stopped(self) except -1
    cpdef bint is_killed(self) except -1
    cpdef on_cancel(self, callback, loop=*)
    cpdef off_cancel(self, callback)
    cpdef watch(self, watcher)
    cpdef unwatch(self, watcher)
