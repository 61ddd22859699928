# The types with which Cython translates `_native.py`.

cdef class Native:
    pass
