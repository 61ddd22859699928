# The types with which Cython translates `deadlines.py`.
cimport cython

from dynamo_fast._native cimport Native

@cython.final
cdef class Deadlines(Native):
    cdef readonly double seconds
    cdef readonly object _loop
    cdef readonly object _time
    cdef readonly object _expire
    cdef readonly dict _deadlines
    cdef readonly object _timer

    cpdef add(self, object key)
    cpdef discard(self, object key)
