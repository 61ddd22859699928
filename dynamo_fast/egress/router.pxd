# The types with which Cython translates `router.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.observability.metrics cimport RequestPlaneMetrics, RequestTiming

cdef class AddressedPushRouter:
    cdef object __weakref__
    cdef public object client
    cdef readonly object clients
    cdef readonly object response_server
    cdef readonly RequestPlaneMetrics metrics
    cdef public object inactivity_timeout

    cpdef _leave(self)
    @cython.locals(context=Context, timing=RequestTiming)
    cpdef _send(self, request, ResponseReceiver receiver, RequestTiming timing)

@cython.locals(context=Context)
cdef bytes _payload(request, ResponseReceiver receiver, server)
