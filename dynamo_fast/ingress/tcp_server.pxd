# The types with which Cython translates `tcp_server.py`.
cimport cython

from dynamo_fast.deadlines cimport Deadlines
from dynamo_fast.net.frame_protocol cimport FrameProtocol
from dynamo_fast.wire.headers cimport decode_headers

@cython.final
cdef class _RequestConnection(FrameProtocol):
    cdef object __weakref__
    cdef readonly object _server
    cdef readonly list _acknowledgements
    cdef readonly bint _open
    cdef readonly bint _new
    cdef readonly Py_ssize_t _held
    cdef readonly Py_ssize_t _unread

    @cython.locals(written=list)
    cdef object _write_acknowledgements(self)
    @cython.locals(path=bytes)
    cdef object _answer(self, object message)
    cdef object _refuse(self, str cause, str text)
    cdef object _is_known(self)
    @cython.locals(idle=Deadlines, unfinished=Deadlines, pending=Py_ssize_t)
    cdef object _restart_deadlines(self, bint got_request)
    cdef object _hold(self, Py_ssize_t pending)
