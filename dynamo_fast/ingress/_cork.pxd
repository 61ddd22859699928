# The types with which Cython translates `_cork.py`.
cimport cython

from dynamo_fast.wire._plain cimport encode_plain

@cython.final
cdef class Cork:
    cdef readonly list data
    cdef public Py_ssize_t bytes
    cdef public bint paused
    cdef readonly object _write
    cdef readonly object _clock
    cdef readonly Py_ssize_t _max_items
    cdef readonly Py_ssize_t _max_bytes
    cdef readonly double _max_seconds
    cdef readonly double _until

    cpdef object restart(self)
    cpdef object add(self, object value)
    @cython.locals(data=bytes)
    cpdef bint hold(self, object value) except -1
    @cython.locals(now=double)
    cpdef bint is_due(self, Py_ssize_t items) except -1
