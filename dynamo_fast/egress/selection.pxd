# The types with which Cython translates `selection.py`.
cimport cython

from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.egress.instance_table cimport Entry

cdef class Selection:
    cdef object __weakref__
    cdef readonly object _table
    cdef readonly object _config
    cdef readonly Deadlines _inhibited
    cdef readonly Deadlines _overloaded
    cdef readonly list _free
    cdef readonly set _out
    cdef readonly Py_ssize_t _turn
    cdef readonly dict choosers

    cpdef list free(self)
    cpdef list _free_or_error(self)
    cpdef ended(self, Entry entry)
