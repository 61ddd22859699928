# The types with which Cython translates `histogram.py`.
cimport cython

@cython.final
cdef class Histogram:
    cdef readonly tuple bounds
    cdef readonly list counts
    cdef readonly double sum

    @cython.locals(index=Py_ssize_t, bound=double)
    cpdef observe(self, double value)
