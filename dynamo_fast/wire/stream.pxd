# The types with which Cython translates `stream.py`.
cimport cython

cpdef classify(message)

@cython.final
cdef class StreamMachine:
    cdef readonly dict _table
    cdef public object state

    @cython.locals(row=dict, transition=tuple)
    cpdef step(self, event)

cpdef StreamMachine requester()
cpdef StreamMachine worker()
