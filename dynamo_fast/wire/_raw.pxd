# The types with which Cython translates `_raw.py`.
cimport cython

from dynamo_fast.wire._scan cimport is_one_value_in_blocks


cdef bint _IS_COMPILED

@cython.locals(answer=int)
cpdef bint is_one_value(bytes text)
@cython.locals(depth=Py_ssize_t, at=Py_ssize_t, size=Py_ssize_t, byte=int, chars="const unsigned char *")
cdef bint _is_one_value(bytes text)
