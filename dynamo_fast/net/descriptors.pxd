# The types with which Cython translates `descriptors.py`.
cimport cython

@cython.final
cdef class Descriptors:
    cdef readonly object _read_limit
    cdef readonly object _read_in_use
    cdef readonly list _promisers
    cdef readonly Py_ssize_t _in_use
    cdef readonly Py_ssize_t _committed
    cdef readonly double _next_look
    cdef readonly double _earliest_look
    cdef readonly Py_ssize_t _limit
    cdef readonly Py_ssize_t usable
    cdef readonly Py_ssize_t _share

    @cython.locals(committed=Py_ssize_t)
    cpdef bint promise(self, Py_ssize_t count=*, Py_ssize_t requests=*) except -1
