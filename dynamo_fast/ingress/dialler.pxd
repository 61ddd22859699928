# The types with which Cython translates `dialler.py`.
cimport cython

from dynamo_fast.deadlines cimport Deadlines

@cython.final
cdef class Dialler:
    cdef object __weakref__
    cdef readonly object loop
    cdef readonly object clock
    cdef readonly Deadlines closing
    cdef readonly Deadlines stalled
    cdef readonly Deadlines draining
    cdef readonly Deadlines young
    cdef readonly set started
    cdef readonly object _connector
    cdef readonly object sessions
    cdef readonly object _all_closed

    cpdef object dial_directly(self, object info, object protocol)
    cpdef object closed(self, object connection)

cdef bytes _handshake(object info)
