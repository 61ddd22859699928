# The types with which Cython translates `_plain.py`, which says all the rest.
cimport cython

@cython.locals(kind=type)
cpdef bint is_plain(object value, int depth=*)
cpdef bytes encode_plain(object write, object value)

@cython.final
cdef class PlainItems:
    cdef readonly list data
    cdef public Py_ssize_t bytes
    cdef public double until
    cdef public bint paused
    cdef object _write
    cdef Py_ssize_t _max_items
    cdef Py_ssize_t _max_bytes

    @cython.locals(data=bytes)
    cpdef object add(self, object value)
    @cython.locals(now=double)
    cpdef bint is_due(self, Py_ssize_t items) except -1
