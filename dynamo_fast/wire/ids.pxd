# The types with which Cython translates `ids.py`.
cimport cython

from dynamo_fast.wire._uuid cimport uuid_at

cdef bint _IS_COMPILED
cdef Py_ssize_t _SIZE
cdef list _pool

cpdef random_uuid()
@cython.locals(at=Py_ssize_t)
cpdef list _batch(bytes random)
