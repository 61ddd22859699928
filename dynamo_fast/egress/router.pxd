# The types with which Cython translates `router.py`.
cimport cython

from dynamo_fast.context cimport Context
from dynamo_fast.egress.response_receiver cimport ResponseReceiver
from dynamo_fast.egress.stream_registry cimport StreamRegistry
from dynamo_fast.egress.tcp_client cimport TcpRequestClient
from dynamo_fast.observability.metrics cimport RequestPlaneMetrics, RequestTiming
from dynamo_fast.wire._plain cimport encode_plain
from dynamo_fast.wire.control cimport encode_plain_single_in

cdef class AddressedPushRouter:
    cdef object __weakref__
    cdef public object client
    cdef readonly object clients
    cdef readonly StreamRegistry response_server
    cdef readonly RequestPlaneMetrics metrics
    cdef public object inactivity_timeout

    @cython.locals(timing=RequestTiming, exchange=Exchange)
    cpdef begin(self, request, reader, Context context=*, established=*)
    @cython.locals(server=StreamRegistry)
    cpdef _send(self, request, ResponseReceiver receiver, RequestTiming timing)
    @cython.locals(tcp=TcpRequestClient)
    cpdef _hand_over(self, client, request, bytes payload, ResponseReceiver receiver)

@cython.final
cdef class Exchange:
    cdef readonly AddressedPushRouter _router
    cdef readonly object _request
    cdef readonly object _reader
    cdef public object ack
    cdef readonly ResponseReceiver receiver

    @cython.locals(receiver=ResponseReceiver, router=AddressedPushRouter)
    cpdef stream(self)
    cpdef give_up(self)

@cython.locals(plain=bytes)
cpdef bytes encoded(codec, value)
@cython.locals(context=Context, control=bytes, offered=bytes, body=bytes)
cdef bytes _payload(request, ResponseReceiver receiver, StreamRegistry server)
cdef bytes _encoded_headers(request, Context context)
cdef bytes _control(Context context, address, subject, codec)
