# The types with which Cython translates `admission.py`.
cimport cython

from dynamo_fast.net.descriptors cimport Descriptors
from dynamo_fast.observability.histogram cimport Histogram

@cython.final
cdef class Admission:
    cdef object __weakref__
    cdef readonly object _clock
    cdef readonly object _context
    cdef readonly object _on_done
    cdef public object _descriptors
    cdef readonly object _loop
    cdef readonly Py_ssize_t _max_bytes
    cdef readonly object _queue
    cdef readonly dict _tasks
    cdef readonly Py_ssize_t bytes
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t promised
    cdef readonly Py_ssize_t queue_capacity
    cdef readonly Py_ssize_t rejected
    cdef readonly Histogram wait

    @cython.locals(running=Py_ssize_t, queued=Py_ssize_t)
    cpdef object submit(self, object job)
    cpdef object dials(self, object job)
    cpdef object decoded(self, object job)
    cdef object _refusal(self, str reason)
    cdef object _start(self, object job)
