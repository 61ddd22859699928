# The types with which Cython translates `control.py`.

cpdef bytes encode_single_in(id, address, subject, codec, metadata)
cdef bint _needs_no_escape(str text) except -1
