"""A worker that costs almost nothing, for timing callers: `replay.c`, put into discovery.

    python -m benchmarks.replay_worker [msgpack|json] [mux]    registers `bench.worker.run` in the file store, and serves

The codec is the one that its record asks for; it answers in the one that a request names. With `mux` the record says that
it answers on sessions, too: a router of this package then asks for one.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

ENDPOINT = ("bench", "worker", "run")
INSTANCE = 0xBE7C4
RECORD_NAME = "bench%2Fworker%2Frun%2Fbe7c4"
_HEARTBEAT_SECONDS = 2


def request_frame(
    work: dict[str, int], port: int, codec: str = "msgpack", subject: str = "s", session: str | None = None
) -> bytes:
    """A request to this worker, to be answered on that port of this machine; on a session, if it has the token of one."""
    info = {"address": f"127.0.0.1:{port}", "subject": subject, "context": "c", "stream_type": "response"}
    control: dict[str, object] = {
        "id": "c",
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": codec,
        "connection_info": {"transport": "tcp_server", "info": json.dumps(info, separators=(",", ":"))},
    }
    if session is not None:
        control["dynamo_fast_mux"] = {"version": 1, "session": session}
    header = json.dumps(control, separators=(",", ":")).encode()
    body = json.dumps(work).encode() if codec == "json" else msgspec.msgpack.encode(work)
    payload = struct.pack(">QQQ", len(header), len(body), 0) + header + body
    path = b"/".join([b"%x" % INSTANCE, *(name.encode() for name in ENDPOINT)])
    return struct.pack(">H", len(path)) + path + b"\0\0" + struct.pack(">I", len(payload)) + payload


def compiled(name: str, folder: str) -> str:
    """A program of this folder in C, compiled into `folder`; its path. Raises OSError, CalledProcessError."""
    program = str(Path(folder) / name)
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, str(Path(__file__).parent / f"{name}.c")], check=True)
    return program


def register(port: int, codec: str, mux: bool = False) -> Path:
    """Put the worker on that port into the file store; the file, which is to be touched while the worker lives."""
    namespace, component, endpoint = ENDPOINT
    record: dict[str, object] = {
        "type": "Endpoint",
        "component": component,
        "endpoint": endpoint,
        "namespace": namespace,
        "instance_id": INSTANCE,
        "transport": {"tcp": f"127.0.0.1:{port}/{INSTANCE:x}/{'/'.join(ENDPOINT)}"},
        "device_type": "cuda",
        "request_plane_codec": codec,
    }
    if mux:
        record["dynamo_fast_mux"] = 1
    folder = Path(os.environ["DYN_FILE_KV"]) / "v1" / "instances"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".tmp_replay"
    temporary.write_text(json.dumps(record, separators=(",", ":")))
    return temporary.replace(folder / RECORD_NAME)


def main(codec: str, mux: bool) -> None:
    """Serve until killed; the program in C ends with its standard input, which is this process's."""
    with tempfile.TemporaryDirectory() as folder:
        replay = subprocess.Popen([compiled("replay", folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert replay.stdout is not None
        record = register(int(replay.stdout.readline()), codec, mux)
    print("ready", flush=True)
    while replay.poll() is None:
        time.sleep(_HEARTBEAT_SECONDS)
        os.utime(record)


if __name__ == "__main__":
    main("json" if "json" in sys.argv[1:] else "msgpack", "mux" in sys.argv[1:])
