# The types with which Cython translates `instance_table.py`.
cimport cython

cdef class LoadQueue

@cython.final
cdef class Entry:
    cdef readonly object instance
    cdef readonly object kind
    cdef readonly object address
    cdef readonly object id
    cdef readonly object codec
    cdef readonly object mux
    cdef readonly LoadQueue queue
    cdef public Py_ssize_t in_flight

    cpdef begin(self)
    cpdef end(self)

@cython.final
cdef class LoadQueue:
    cdef readonly list _levels
    cdef readonly Py_ssize_t _lowest
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t total

    @cython.locals(levels=list, level=dict, before=Py_ssize_t, after=Py_ssize_t)
    cpdef shift(self, Entry entry, Py_ssize_t by)
