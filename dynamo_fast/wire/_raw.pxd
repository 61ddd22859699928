# The types with which Cython translates `_raw.py`.
cimport cython

@cython.locals(depth=Py_ssize_t, at=Py_ssize_t, size=Py_ssize_t, byte=int, chars="const unsigned char *")
cpdef bint is_one_value(bytes text)
