# The types with which Cython translates `control.py`.

cpdef bytes encode_plain_single_in(id, address, subject, codec)
