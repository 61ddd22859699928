# The types with which Cython translates `_arrived.py`.
cimport cython

from dynamo_fast.egress._items cimport Items
from dynamo_fast.egress._send cimport fill_send_slot

cdef bint _IS_COMPILED

cdef class FutureItems:
    cdef object __weakref__
    cdef readonly Items _stream
    cdef readonly object _loop
    cdef public Py_ssize_t _waits

    cpdef _later(self)
    cpdef _failed(self, error)


@cython.final
@cython.freelist(16)
cdef class Arrived:
    cdef readonly object _value
    cdef readonly object _loop


@cython.locals(arrived=Arrived)
cdef object _arrived(object value, object loop)
@cython.locals(done=Arrived)
cdef object _step(object arrived)
cdef bint _is_over(object arrived) noexcept
