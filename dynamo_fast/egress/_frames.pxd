# The types with which Cython translates `_frames.py`.
cimport cython

@cython.final
cdef class Frames:
    cdef readonly object first
    cdef readonly list _rest
    cdef readonly Py_ssize_t _at

    cpdef append(self, frame)
    cpdef extend(self, list frames)
    @cython.locals(rest=list, at=Py_ssize_t)
    cpdef popleft(self)
    cpdef clear(self)

cdef Py_ssize_t _WORTH_A_MOVE
