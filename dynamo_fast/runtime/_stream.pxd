# The types with which Cython translates `_stream.py`.
cimport cython

from dynamo_fast.egress.call cimport Call
from dynamo_fast.runtime._arrived cimport FutureItems

@cython.final
cdef class AsyncResponseStream(FutureItems):
    cdef readonly Call _call
    cdef readonly object _pending
    cdef readonly object _unlink

    cpdef _raised(self, error)
