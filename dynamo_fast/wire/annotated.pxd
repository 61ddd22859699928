# The types with which Cython translates `annotated.py`.
cimport cython


cdef bint _IS_COMPILED


cdef class Fields:
    cdef readonly object _data
    cdef readonly object _id
    cdef readonly object _event
    cdef readonly object _comment
    cdef readonly object _error


cdef class Annotated(Fields):
    pass


@cython.locals(item=Annotated)
cpdef Annotated with_data(object data)
