# The types with which Cython translates `_plain.py`.
cimport cython

@cython.locals(kind=type)
cpdef bint is_plain(object value, int depth=*)
cpdef bytes encode_plain(object write, object value)

@cython.locals(kind=type)
cpdef bint is_plain_json(object value, int depth=*)
