# The types with which Cython translates `control.py`.

cimport cython

cdef bytes _TO_SUBJECT
cdef bytes _TO_END

cpdef bytes encode_plain_single_in(id, address, subject, codec)
@cython.locals(text=bytes)
cpdef str usual_subject(handshake)
