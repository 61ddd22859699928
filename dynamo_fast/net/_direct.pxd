# The types with which Cython translates `_direct.py`.
cimport cython

@cython.final
cdef class Poller:
    cdef object __weakref__
    cdef readonly object loop
    cdef readonly object _epoll
    cdef readonly dict _transports
    cdef readonly list _ended
    cdef readonly bint _is_dispatching
    cdef readonly bint _is_closing

    cpdef DirectTransport connect(self, str host, object port, object protocol, bytes first)
    cdef object _close_if_unused(self)
    cdef object _add(self, DirectTransport transport, int number, int events)
    cdef object _change(self, int number, int before, int events)
    cdef object _remove(self, DirectTransport transport, int number, int events)
    @cython.locals(transport=DirectTransport)
    cpdef object _ready(self)
    @cython.locals(transport=DirectTransport, ended=list)
    cpdef object _tell_ended(self)

@cython.final
cdef class DirectTransport:
    cdef readonly bint connected
    cdef readonly Poller _poller
    cdef readonly object _socket
    cdef readonly int _number
    cdef readonly object _protocol
    cdef readonly object _waiter
    cdef readonly bint _closing
    cdef readonly bint _closed
    cdef readonly bint _ends_writing
    cdef readonly bint _paused
    cdef readonly object _error
    cdef readonly list _unsent
    cdef readonly Py_ssize_t _size
    cdef readonly int _events

    cpdef bint is_closing(self)
    @cython.locals(sent=Py_ssize_t)
    cpdef object write(self, bytes data)
    cpdef bint can_write_eof(self)
    cpdef object write_eof(self)
    cpdef object close(self)
    cpdef object abort(self)
    cdef object _dispatch(self, int events)
    cdef object _finish_connecting(self)
    cdef object _read(self)
    @cython.locals(sent=Py_ssize_t, unsent=list)
    cdef object _flush(self)
    cdef object _keep(self, bytes data, Py_ssize_t sent)
    cdef object _watch(self, int events)
    cdef object _shut_down(self)
    cdef object _pending_error(self)
    cdef object _fail(self, object error)
    cdef object _end(self)
    cdef object _tell_lost(self)

cdef Py_ssize_t _send(object endpoint, object data) except? -2
cdef int _IN
cdef int _OUT
cdef tuple _WOULD_BLOCK
