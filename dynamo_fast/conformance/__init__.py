"""Check any implementation of Dynamo's TCP frames, in any language, against bytes that Dynamo wrote.

The implementation is a command that answers questions: a line of JSON on its standard input, a line of JSON on its standard
output, in order, until its input ends. All bytes are in hex. There are two kinds of question:

    {"id": 1, "op": "decode", "format": "two_part", "chunks": ["00..."], "max_message_size": null, "checksum": false}
    {"id": 1, "messages": [{"header": "...", "data": "..."}], "pending": 0, "error": null}

    {"id": 2, "op": "encode", "format": "tcp_response", "message": {"data": ""}, "max_message_size": 8, "checksum": false}
    {"id": 2, "bytes": "00000000", "error": null}

`format` is two_part (parts: header, data), tcp_request (endpoint_path, headers, payload) or tcp_response (data). The
chunks of a decode are fed to a new decoder one after the other; `pending` is how many bytes it then holds for an incomplete
frame. `error` is null, message_too_large or checksum_mismatch; the messages before a bad frame count.
`max_message_size` limits a whole frame, in bytes. With `checksum`, one that is not 0 is verified, and one is written: the
xxh3-64 of header and data. What an implementation does not do, it answers with {"id": 2, "unsupported": "checksum"}.

`python -m dynamo_fast.conformance.driver` answers for the codec of this package, and is the shortest example.
"""

from dynamo_fast.conformance.runner import Outcome, check
from dynamo_fast.conformance.suite import Case, Vector, cases, vectors

__all__ = ["Case", "Outcome", "Vector", "cases", "check", "vectors"]
