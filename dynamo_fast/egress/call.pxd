# The types with which Cython translates `call.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.egress.instance_table cimport Entry
from dynamo_fast.egress.router cimport AddressedPushRouter, encoded

cdef class Call:
    cdef readonly object _owner
    cdef readonly AddressedPushRouter _router
    cdef readonly Context context
    cdef readonly Entry entry
    cdef readonly object _request
    cdef public object _headers
    cdef readonly Py_ssize_t _retries
    cdef readonly set _tried
    cdef readonly object _error
    cdef readonly object _attempt
    cdef readonly object _reader
    cdef readonly tuple _how
    cdef readonly double _began

    @cython.locals(entry=Entry)
    cpdef prepare(self, choose)
    @cython.locals(router=AddressedPushRouter)
    cpdef begin(self, established)
    cpdef begun(self)
    cpdef completed(self)
    @cython.locals(entry=Entry)
    cpdef release(self)
