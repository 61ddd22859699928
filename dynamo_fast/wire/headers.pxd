# The types with which Cython translates `headers.py`.

cpdef bytes encode_headers(headers)
cpdef dict decode_headers(data)
