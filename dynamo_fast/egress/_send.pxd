# What neither Python nor Cython code can do, and what every item pays for.

cdef extern from *:
    """
    /* Of the one class in this module whose slot is filled. */
    static PyObject *(*dynamo_fast_step)(PyObject *);
    static int (*dynamo_fast_is_over)(PyObject *);
    static PyObject *dynamo_fast_end;

    CYTHON_UNUSED static PySendResult dynamo_fast_send(PyObject *self, PyObject *value, PyObject **result) {
        (void)value; /* a task sends nothing but None */
        *result = dynamo_fast_step(self);
        if (*result == dynamo_fast_end) {
            Py_CLEAR(*result);
            PyErr_SetNone(PyExc_StopAsyncIteration);
            return PYGEN_ERROR;
        }
        return *result == NULL ? PYGEN_ERROR : dynamo_fast_is_over(self) ? PYGEN_RETURN : PYGEN_NEXT;
    }

    CYTHON_UNUSED static void fill_send_slot(
        PyObject *type, PyObject *(*step)(PyObject *), int (*is_over)(PyObject *), PyObject *end
    ) {
        Py_INCREF(end);
        dynamo_fast_end = end;
        dynamo_fast_step = step;
        dynamo_fast_is_over = is_over;
        ((PyTypeObject *)type)->tp_as_async->am_send = dynamo_fast_send;
    #ifdef _Py_TPFLAGS_HAVE_AM_SEND /* Python 3.10 */
        ((PyTypeObject *)type)->tp_flags |= _Py_TPFLAGS_HAVE_AM_SEND;
    #endif
        PyType_Modified((PyTypeObject *)type);
    }

    CYTHON_UNUSED static PyObject *bytes_inside(PyObject *frame, PyObject *head, PyObject *tail) {
        Py_ssize_t begin = PyBytes_GET_SIZE(head), after = PyBytes_GET_SIZE(tail);
        Py_ssize_t size = PyBytes_GET_SIZE(frame) - begin - after;
        const char *at = PyBytes_AS_STRING(frame);
        if (size < 0 || memcmp(at, PyBytes_AS_STRING(head), begin) ||
            memcmp(at + begin + size, PyBytes_AS_STRING(tail), after))
            Py_RETURN_NONE;
        return PyBytes_FromStringAndSize(at + begin, size);
    }
    """
    # `am_send` is how `await` asks for a result. Without it each result travels as a StopIteration, which costs more than
    # the rest of an `await`. `step` returns the result, or what to wait for; then `is_over` says which of the two it was.
    # In place of `end` it raises StopAsyncIteration, without the traceback that costs as much as an item.
    void fill_send_slot(object kind, object (*step)(object), bint (*is_over)(object) noexcept, object end)
    # What stands between `head` and `tail` in `frame`, which is bytes; None if it does not begin and end so. Cython's own
    # `startswith` and slices cost thrice as much.
    bytes bytes_inside(object frame, bytes head, bytes tail)
