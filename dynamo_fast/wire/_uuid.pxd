# A UUID has 36 characters: made one by one as objects, they would cost ten times as much.

cdef extern from *:
    """
    CYTHON_UNUSED static PyObject *uuid_at(PyObject *random, Py_ssize_t at) {
        static const char digits[] = "0123456789abcdef";
        const unsigned char *from = (const unsigned char *)PyBytes_AS_STRING(random) + at;
        PyObject *text = PyUnicode_New(36, 127);
        Py_UCS1 *to;
        int i;
        if (text == NULL) return NULL;
        to = PyUnicode_1BYTE_DATA(text);
        for (i = 0; i < 16; i++) {
            unsigned char byte = from[i];
            if (i == 6) byte = (byte & 0x0F) | 0x40; /* the version */
            if (i == 8) byte = (byte & 0x3F) | 0x80; /* the variant */
            if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
            *to++ = digits[byte >> 4];
            *to++ = digits[byte & 15];
        }
        return text;
    }
    """
    # The version 4 UUID of the 16 bytes of `random` from `at` on, which must be there.
    str uuid_at(bytes random, Py_ssize_t at)
