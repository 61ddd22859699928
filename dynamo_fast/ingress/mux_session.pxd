# The types with which Cython translates `mux_session.py`.
cimport cython

@cython.final
cdef class MuxSender:
    cdef readonly Py_ssize_t _at
    cdef readonly object _backlog
    cdef readonly bint _closing
    cdef readonly bint _opened
    cdef readonly object _owner
    cdef readonly MuxSession _session
    cdef readonly Py_ssize_t _size
    cdef public Py_ssize_t credit
    cdef readonly object number
    cdef public bint queued

    cpdef bint is_closing(self)
    cpdef Py_ssize_t get_write_buffer_size(self) except -1
    @cython.locals(size=Py_ssize_t)
    cpdef object write(self, bytes data)
    cpdef object close(self)
    cpdef object abort(self)
    @cython.locals(data=bytes, end=Py_ssize_t, size=Py_ssize_t)
    cpdef bytes take(self, Py_ssize_t limit)
    cpdef bint has_more(self) except -1
    cdef object _keep(self, bytes data)
    cdef object _drop(self)
    cpdef object _tell_lost_later(self)

@cython.final
cdef class MuxSession:
    cdef object __weakref__
    cdef readonly bint _blocked
    cdef readonly Py_ssize_t _credit
    cdef readonly object _decoder
    cdef readonly bint _flush_is_due
    cdef readonly object _idle_since
    cdef readonly object _last
    cdef readonly list _lost
    cdef readonly list _out
    cdef readonly Py_ssize_t _out_size
    cdef readonly object _owner
    cdef readonly object _queue
    cdef readonly object _timer
    cdef readonly object _transport
    cdef readonly Py_ssize_t _unanswered
    cdef readonly Py_ssize_t _window
    cdef readonly Py_ssize_t ignored
    cdef readonly tuple key
    cdef readonly bint opened
    cdef readonly bint over
    cdef readonly object ready
    cdef readonly dict senders

    cpdef object open(self, object owner, str subject)
    @cython.locals(size=Py_ssize_t)
    cpdef bint push(self, bytes data) except -1
    cpdef object queue(self, MuxSender sender)
    cpdef object ended(self, MuxSender sender)
    cpdef object tell_lost(self, object owner)
    cpdef object _schedule(self)
    @cython.locals(lost=list)
    cpdef object _flush(self)
    @cython.locals(room=Py_ssize_t, sender=MuxSender, taken=bytes)
    cpdef bint _gather(self) except -1
    @cython.locals(out=list, size=Py_ssize_t)
    cpdef object _write(self)
