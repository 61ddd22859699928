# The types with which Cython translates `mux_session.py`.
cimport cython

from dynamo_fast.ingress.mux_sender cimport MuxOutput, MuxSender

@cython.final
cdef class MuxSession:
    cdef object __weakref__
    cdef readonly object _decoder
    cdef readonly object _idle_since
    cdef readonly object _last
    cdef readonly object _owner
    cdef readonly object _timer
    cdef readonly Py_ssize_t _unanswered
    cdef readonly object _unseen
    cdef readonly Py_ssize_t _window
    cdef readonly Py_ssize_t ignored
    cdef readonly tuple key
    cdef readonly bint opened
    cdef readonly MuxOutput output
    cdef readonly object ready

    @cython.locals(output=MuxOutput, sender=MuxSender)
    cpdef object open(self, object owner, str subject)
