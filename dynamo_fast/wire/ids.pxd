# The types with which Cython translates `ids.py`.
cimport cython

cpdef random_uuid()
@cython.locals(digits=object, texts=object)  # Cython's own type for them refuses bytes for their slices
cdef _batch()
