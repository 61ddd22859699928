# The types with which Cython translates `cancellation.py`.
cimport cython

@cython.final
cdef class Cancellation:
    cdef readonly object _grace
    cdef readonly bint _has_ended
    cdef readonly object _loop
    cdef readonly object _timer
    cdef public bint handler_called
    cdef public object task
    cdef public bint was_cut_short

    cpdef object ended(self)
    cpdef object shut_down(self)
