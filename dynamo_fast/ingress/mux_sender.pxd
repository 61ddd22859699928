# The types with which Cython translates `mux_sender.py`.
cimport cython

@cython.final
cdef class MuxSender:
    cdef readonly Py_ssize_t _at
    cdef readonly object _backlog
    cdef readonly bint _closing
    cdef readonly bint _opened
    cdef readonly MuxOutput _output
    cdef readonly object _owner
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
cdef class MuxOutput:
    cdef readonly bint _blocked
    cdef readonly Py_ssize_t _credit
    cdef readonly bint _flush_is_due
    cdef readonly list _frames
    cdef readonly object _loop
    cdef readonly list _lost
    cdef readonly object _queue
    cdef readonly Py_ssize_t _size
    cdef public bint over
    cdef readonly dict senders
    cdef public object transport

    @cython.locals(size=Py_ssize_t)
    cpdef bint push(self, bytes data) except -1
    cpdef object queue(self, MuxSender sender)
    cpdef object ended(self, MuxSender sender)
    cpdef object tell_lost(self, object owner)
    cpdef object _schedule(self)
    cpdef object _flush(self)
    @cython.locals(room=Py_ssize_t, sender=MuxSender, taken=bytes)
    cpdef bint _gather(self) except -1
    @cython.locals(frames=list, size=Py_ssize_t)
    cpdef object _write(self)
    @cython.locals(lost=list)
    cpdef object _tell_the_lost(self)
