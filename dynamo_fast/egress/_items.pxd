# The types with which Cython translates `_items.py`.
cimport cython

from dynamo_fast.egress._frames cimport Frames
from dynamo_fast.wire._raw cimport is_one_value
from dynamo_fast.wire.annotated cimport with_data
from dynamo_fast.egress._send cimport bytes_inside, fill_send_slot


cdef bint _IS_COMPILED

cdef class NextItem


cdef class Items:
    cdef object __weakref__
    cdef public object _receiver
    cdef public bint _final_seen
    cdef public bint _open
    cdef public bint _bare
    cdef public bint _mixed
    cdef public bint _flowing
    cdef public bint _in_take
    cdef public bint _asked
    cdef public object _abandonment
    cdef readonly Frames _frames
    cdef readonly object _read_data
    cdef readonly object _decode
    cdef readonly bint _scan
    cdef readonly bytes _null
    cdef readonly bytes _final
    cdef readonly bytes _head
    cdef readonly bytes _tail

    cpdef _read(self, receiver, reader)
    cpdef object pull(self)
    cpdef object take(self)
    cpdef object feed(self, object take)
    cpdef object wait(self)
    cpdef _unusual(self, frame)
    cpdef _end(self)
    @cython.locals(data=bytes)
    cdef object _plain(self, object frame)


@cython.final
cdef class NextItem:
    cdef readonly Items _items
    cdef readonly object _waiting


@cython.locals(next_item=NextItem)
cpdef begin(Items items)
@cython.locals(next_item=NextItem, items=Items)
cdef object _step(object item)
@cython.locals(next_item=NextItem)
cdef bint _is_over(object item) noexcept
