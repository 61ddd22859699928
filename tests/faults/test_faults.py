"""Every fault at every place of a conversation: what the caller gets, what becomes of the handler, and when.

The tables below are the expectation. A row is a frame and a byte of it, a column is a fault (see `proxy`). A cell says

    the caller's end                                   when           the handler's end
    ok  the answer, all of it                          .  at once          -  it was never called
    cc  CannotConnect                                  ~  with the         d  it finished
    ct  ConnectionTimeout                                 next frame       k  its context was killed, then it was cancelled
    di  Disconnected                                   5  after 5 s        w  the same, when the worker writes again
    un  Unavailable                                    H  after 10 s       s  its context was stopped, then it was cancelled
    rr  RequestRefused                                 C  after 120 s
    re  RemoteError                                    e  with the last
                                                          frame
    pa  PayloadError
    pr  ProtocolError
    wa  it waits for as long as it likes: a worker that is silent in mid-answer has no limit by default

On the multiplexed plane the cells of the requests and of the input are the same; the answers have tables of their own.

`cc`, `ct`, `di` and `un` may be tried on another worker, the others may not. 5 s are the limit of the acknowledgement, 10 s
that of a handshake, 120 s that of a call home. A worker that gets no session within 5 s answers without one. After `stop`
and `kill` the end of an answer is no error, whatever ended it.

For every cell: the items before the fault came intact and in order; another stream of the same router and worker goes on;
a call afterwards succeeds; every table, task and descriptor is as before; the event loop has heard of no error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from dynamo_fast.egress import mux_session
from dynamo_fast.testing import clock
from tests.faults import proxy
from tests.faults.frames import Part, Plane, Side
from tests.faults.proxy import Fault, Place
from tests.faults.world import ITEMS, OUTPUT, REAL, TURNED, Seen, Times, strike, together

#: `forward` and `back` are half-closes: an end of file for the receiver of the frame, and for its sender.
PLACES = """
                         cut       finish    forward   back      stall     dribble   garbage   flip
request         before   cc.-      cc.-      cc.-      cc.k      ct5-      ok.d      ct5-      ct5-
request         prefix   cc.-      cc.-      cc.-      cc.k      ct5-      ok.d      ct5-      ct5-
request         headers  cc.-      cc.-      cc.-      cc.k      ct5-      ok.d      rr.-      ok.d
request         body     cc.-      cc.-      cc.-      cc.k      ct5-      ok.d      un.-      un.-
request         after    cc.k      cc.k      ok.d      cc.k      ct5k      ok.d      ok.d      re.-
ack             before   cc.k      cc.k      cc.k      ok.d      ct5k      ok.d      cc.k      ct5k
ack             prefix   cc.k      cc.k      cc.k      ok.d      ct5k      ok.d      ct5k      ct5k
ack             after    ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ct5k
refusal         before   cc.-      cc.-      cc.-      un.-      ct5-      un.-      cc.-      ct5-
refusal         prefix   cc.-      cc.-      cc.-      un.-      ct5-      un.-      ct5-      ct5-
refusal         body     cc.-      cc.-      cc.-      un.-      ct5-      un.-      un.-      un.-
refusal         after    un.-      un.-      un.-      un.-      un.-      un.-      un.-      un.-
handshake       before   ctCk      ctCk      ctCk      ok.d      ctCd      ok.d      ctCk      ctCk
handshake       prefix   ctCk      ctCk      ctCk      ok.d      ctCd      ok.d      ctCk      ctCk
handshake       body     ctCk      ctCk      ctCk      ok.d      ctCd      ok.d      ctCk      ctCk
prologue        before   di.k      di.w      di.k      ok.d      ctCd      ok.d      di.k      di.k
prologue        prefix   di.k      di.w      di.k      ok.d      ctCd      ok.d      di.k      cc~k
prologue        body     di.k      di.w      di.k      ok.d      ctCd      ok.d      cc.k      cc.k
item-1          before   di.k      di.w      di.w      ok.d      wa.d      ok.d      di.k      di.k
item-1          prefix   di.k      di.w      di.k      ok.d      wa.d      ok.d      di.k      di~k
item-1          body     di.k      di.w      di.k      ok.d      wa.d      ok.d      pa.k      pa.k
item-2          before   di.k      di.d      di.d      ok.d      wa.d      ok.d      di.k      di.k
item-2          prefix   di.k      di.d      di.k      ok.d      wa.d      ok.d      di.k      di~k
item-2          body     di.k      di.d      di.k      ok.d      wa.d      ok.d      pa.k      pa.k
final           before   di.d      di.d      di.d      ok.d      wa.d      ok.d      di.d      di.d
final           prefix   di.d      di.d      di.d      ok.d      wa.d      ok.d      di.d      di.d
final           body     di.d      di.d      di.d      ok.d      wa.d      ok.d      pa.d      pa.d
sentinel        before   ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d
sentinel        prefix   ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d
sentinel        body     ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d
sentinel        after    ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d
stop            before   ok.k      ok.w      ok.d      ok.s      wa.d      ok.s      ok.k      ok.k
stop            prefix   ok.k      ok.w      ok.d      ok.s      wa.d      ok.s      ok.k      ok.d
stop            body     ok.k      ok.w      ok.d      ok.s      wa.d      ok.s      ok.k      ok.k
stop            after    ok.s      ok.s      ok.s      ok.s      wa.s      ok.s      ok.s      ok.k
kill            before   ok.k      ok.w      ok.d      ok.k      ok.d      ok.k      ok.k      ok.k
kill            prefix   ok.k      ok.w      ok.d      ok.k      ok.d      ok.k      ok.k      ok.d
kill            body     ok.k      ok.w      ok.d      ok.k      ok.d      ok.k      ok.k      ok.k
kill            after    ok.k      ok.k      ok.k      ok.k      ok.k      ok.k      ok.k      ok.k
input-handshake before   di.k      di.k      di.k      di.k      ctCk      ok.d      di.k      di.k
input-handshake prefix   di.k      di.k      di.k      di.k      ctCk      ok.d      di.k      diHk
input-handshake body     di.k      di.k      di.k      di.k      ctCk      ok.d      di.k      di.k
input-item      before   di.k      di.k      di.k      di.k      wa.k      ok.d      di.k      di.k
input-item      prefix   di.k      di.k      di.k      di.k      wa.k      ok.d      di.k      di~k
input-item      body     di.k      di.k      di.k      di.k      wa.k      ok.d      di.k      ok.d
input-item-2    before   di.k      di.k      di.k      di.k      wa.k      ok.d      di.k      di.k
input-sentinel  before   di.k      di.k      di.k      ok.d      wa.k      ok.d      di.k      di.k
input-sentinel  prefix   di.k      di.k      di.k      ok.d      wa.k      ok.d      di.k      di.k
input-sentinel  body     di.k      di.k      di.k      ok.d      wa.k      ok.d      di.k      di.k
input-sentinel  after    ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      ok.d      di.k
"""

#: Faults of a whole frame.
FRAMES = """
                         duplicate drop      huge      small     swap      extra
request                  ok.d      ct5-      rr.-      un.-      ct5k      ok.d
ack                      ok.d      ct5k      cc.k      ct5k      ct5k      ok.d
refusal                  un.-      ct5-      cc.-      un.-      ct5-      un.-
handshake                di.k      ctCk      ctCk      ctCk      ctCk      cc.k
prologue                 di.k      cc~k      di.k      cc.k      cc~k      di.k
item-1                   ok.d      ok.d      di.k      pa.k      ok.d      di.k
item-2                   ok.d      ok.d      di.k      pa.k      ok.d      di.k
final                    pr.d      di.d      di.d      pa.d      di.d      ok.d
sentinel                 ok.d      ok.d      ok.d      ok.d      ok.d      ok.d
stop                     ok.s      ok.d      ok.k      ok.k      ok.d      ok.s
kill                     ok.k      ok.d      ok.k      ok.k      ok.k      ok.k
input-handshake          di.k      diHk      di.k      di.k      diHk      di.k
input-item               ok.d      ok.d      di.k      di.k      ok.d      di.k
input-item-2             ok.d      ok.d      di.k      di.k      ok.d      di.k
input-sentinel           ok.d      di.k      di.k      di.k      ok.d      ok.d
"""

#: The same for the multiplexed plane (docs/spec/mux.md), where the answers of both calls come on one connection. `x`: it is
#: lost, at the latest when the harm ends, and the bystander with it. At `session` and `hello` the bystander has a
#: connection of its own. An `open` that is lost with its session is made good on the next one; not one that a network has
#: changed, which TCP does not do, so that the router knows another stream.
SESSION_PLACES = """
                         cut       finish    forward   back      stall     dribble   garbage   flip
session         before   ok.d      ok.d      ok.d      ok.d      ok5d      ok.d      ok.d      ok.d
session         prefix   ok.d      ok.d      ok.d      ok.d      ok5d      ok.d      ok.d      ok5d
session         body     ok.d      ok.d      ok.d      ok.d      ok5d      ok.d      ok.d      ok.d
session         after    ok.d      ok.d      di.k      ok.d      ok5d      ok.d      ok.d      ok.d
hello           before   ok.d      ok.d      ok.d      di.k      ok5d      ok.d      ok.d      ok.d
hello           prefix   ok.d      ok.d      ok.d      di.k      ok5d      ok.d      ok5d      ok5d
hello           body     ok.d      ok.d      ok.d      di.k      ok5d      ok.d      ok.d      ok.d
hello           after    di.k      di.k      di.k      di.k      ctCd      ok.d      ok.d      ok.d
open            before   di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     di.kx     ctCdx
open            prefix   di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     diedx     ctCkx
open            body     di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     ctCkx     ctCk
open            after    di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     di.kx     ctCk
mux-prologue    before   di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     di.kx     di.kx
mux-prologue    prefix   di.kx     di.kx     di.kx     di.kx     ctCdx     ok.dx     ctCdx     cc~kx
mux-prologue    after    di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     di.kx     cc~kx
mux-item-1      before   di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     di.kx     di.kx
mux-item-1      prefix   di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     wa.dx     pa.kx
mux-item-1      body     di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     pa.kx     pa.k
mux-item-2      before   di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     di.kx     di.kx
mux-item-2      prefix   di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     wa.dx     pa.kx
mux-item-2      body     di.kx     di.kx     di.kx     di.kx     wa.dx     ok.dx     pa.kx     pa.k
mux-final       before   di.dx     di.dx     di.dx     ok.dx     wa.dx     ok.dx     di.dx     di.dx
mux-final       prefix   di.dx     di.dx     di.dx     ok.dx     wa.dx     ok.dx     wa.dx     pa.dx
mux-final       body     di.dx     di.dx     di.dx     ok.dx     wa.dx     ok.dx     pa.dx     pa.d
mux-end         before   ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx
mux-end         prefix   ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx
mux-end         after    ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx     ok.dx
mux-stop        before   ok.kx     ok.kx     ok.kx     ok.sx     wa.dx     ok.sx     ok.kx     ok.kx
mux-stop        prefix   ok.kx     ok.kx     ok.kx     ok.sx     wa.dx     ok.sx     ok.d      ok.d
mux-stop        after    ok.sx     ok.sx     ok.sx     ok.sx     wa.sx     ok.sx     ok.sx     ok.d
mux-kill        before   ok.kx     ok.kx     ok.kx     ok.kx     ok.dx     ok.kx     ok.kx     ok.kx
mux-kill        prefix   ok.kx     ok.kx     ok.kx     ok.kx     ok.dx     ok.kx     ok.d      ok.d
mux-kill        after    ok.kx     ok.kx     ok.kx     ok.kx     ok.kx     ok.kx     ok.kx     ok.d
"""

SESSION_FRAMES = """
                         duplicate drop      huge      small     swap      extra
session                  ok.d      ok5d      ok.d      ok.d      ok5d      ok.d
hello                    ok.d      ok5d      ok.d      ok.d      ok5d      ok.d
open                     di.kx     di.kx     di.kx     ctCkx     di.kx     di.k
mux-prologue             di.k      cc~k      di.kx     cc~kx     cc~k      di.k
mux-item-1               ok.d      ok.d      di.kx     pa.kx     ok.d      di.k
mux-item-2               ok.d      ok.d      di.kx     pa.kx     ok.d      di.k
mux-final                pr.d      di.d      di.dx     pa.dx     di.d      ok.d
mux-end                  ok.d      ok.d      ok.dx     ok.dx     ok.d      ok.d
mux-stop                 ok.s      ok.d      ok.kx     ok.d      ok.d      ok.sx
mux-kill                 ok.k      ok.d      ok.kx     ok.d      ok.d      ok.k
"""

FAULTS: dict[str, Fault] = {
    "cut": proxy.cut,
    "finish": proxy.finish,
    "forward": proxy.end_forward,
    "back": proxy.end_back,
    "stall": proxy.stall,
    "dribble": proxy.dribble,
    "garbage": proxy.garbage,
    "flip": proxy.flip,
    "duplicate": proxy.duplicate,
    "drop": proxy.drop,
    "huge": proxy.huge,
    "small": proxy.small,
    "swap": proxy.swap,
    "extra": proxy.extra,
}


@dataclass(frozen=True)
class Moment:
    """A row's frame: which call it belongs to, where it passes, and how many items the caller has by then."""

    endpoint: str
    then: str
    plane: Plane
    to: Side
    frame: int
    items: int = 0


_R, _W = Side.ROUTER, Side.WORKER
MOMENTS = {
    "request": Moment("answer", "", Plane.REQUEST, _W, 0),
    "ack": Moment("answer", "", Plane.REQUEST, _R, 0),
    "refusal": Moment("nowhere", "", Plane.REQUEST, _R, 0),
    "handshake": Moment("answer", "", Plane.RESPONSE, _R, 0),
    "prologue": Moment("answer", "", Plane.RESPONSE, _R, 1),
    "item-1": Moment("answer", "", Plane.RESPONSE, _R, 2),
    "item-2": Moment("answer", "", Plane.RESPONSE, _R, 3, 1),
    "final": Moment("answer", "", Plane.RESPONSE, _R, 5, 3),
    "sentinel": Moment("answer", "", Plane.RESPONSE, _R, 6, 3),
    "stop": Moment("answer", "stop", Plane.RESPONSE, _W, 0, 1),
    "kill": Moment("answer", "kill", Plane.RESPONSE, _W, 0, 1),
    "input-handshake": Moment("converse", "", Plane.INPUT, _R, 0),
    "input-item": Moment("converse", "", Plane.INPUT, _W, 0),
    "input-item-2": Moment("converse", "", Plane.INPUT, _W, 1, 1),
    "input-sentinel": Moment("converse", "", Plane.INPUT, _W, 2, 2),
    "session": Moment("answer", "", Plane.SESSION, _R, 0),
    "hello": Moment("answer", "", Plane.SESSION, _W, 0),
    "open": Moment("answer", "", Plane.SESSION, _R, 0),
    "mux-prologue": Moment("answer", "", Plane.SESSION, _R, 1),
    "mux-item-1": Moment("answer", "", Plane.SESSION, _R, 2),
    "mux-item-2": Moment("answer", "", Plane.SESSION, _R, 3, 1),
    "mux-final": Moment("answer", "", Plane.SESSION, _R, 5, 3),
    "mux-end": Moment("answer", "", Plane.SESSION, _R, 6, 3),
    "mux-stop": Moment("answer", "stop", Plane.SESSION, _W, 0, 1),
    "mux-kill": Moment("answer", "kill", Plane.SESSION, _W, 0, 1),
}

_A, _B, _C = ITEMS
_X, _Y, _END = OUTPUT
#: The protocol numbers and sums nothing: what a network that loses or repeats whole frames does to items, no end can see.
#: (TCP does neither. It is written down here so that no reader expects more.)
UNSEEN: dict[tuple[str, str], list[Any]] = {
    ("item-1", "duplicate"): [_A, _A, _B, _C],
    ("item-1", "drop"): [_B, _C],
    ("item-1", "swap"): [_B, _A, _C],
    ("item-2", "duplicate"): [_A, _B, _B, _C],
    ("item-2", "drop"): [_A, _C],
    ("item-2", "swap"): [_A, _C, _B],
    ("input-item", "duplicate"): [_X, _X, _Y, _END],
    ("input-item", "drop"): [_Y, _END],
    ("input-item", "swap"): [_Y, _X, _END],
    ("input-item", "flip"): [_Y, _Y, _END],  # "x" with one other bit
    ("input-item-2", "duplicate"): [_X, _Y, _Y, _END],
    ("input-item-2", "drop"): [_X, _END],
    ("input-item-2", "swap"): [_X, _END],
}
#: What passes before the fault, and the frame itself where it arrives whole.
PASSED = {
    **{("item-1", fault): 1 for fault in ("extra", "back")},
    **{("item-2", fault): 2 for fault in ("extra", "back")},
    ("input-item", "back"): 1,
    ("input-item-2", "back"): 2,
}

CALLER = {
    "ok": ("ok", None),
    "cc": ("CannotConnect", True),
    "ct": ("ConnectionTimeout", True),
    "di": ("Disconnected", True),
    "un": ("Unavailable", True),
    "rr": ("RequestRefused", False),
    "re": ("RemoteError", False),
    "pa": ("PayloadError", False),
    "pr": ("ProtocolError", False),
    "wa": ("waits", None),
}
HANDLER = {"-": "-", "d": "done", "k": "cancelled killed", "w": "cancelled killed", "s": "cancelled stopped"}
#: Seconds beyond a deadline for the steps on the way to it.
SLACK = 0.1


@dataclass(frozen=True)
class Case:
    """One cell."""

    row: str
    part: Part
    fault: str
    cell: str
    mux: str

    @property
    def name(self) -> str:
        names = [self.row, self.part.value, self.fault] if self.fault in _placed() else [self.row, self.fault]
        return "-".join(names if self.mux == "off" or self._is_of_session else [*names, "mux"])

    @property
    def _is_of_session(self) -> bool:
        return MOMENTS[self.row].plane is Plane.SESSION

    @property
    def _step(self) -> tuple[str, str]:
        """The same step of a conversation on both planes, and the fault."""
        return self.row.removeprefix("mux-"), self.fault

    @property
    def place(self) -> Place:
        moment = MOMENTS[self.row]
        return Place(moment.plane, moment.to, moment.frame, self.part)

    def run(self, times: Times) -> Coroutine[Any, Any, Seen]:
        moment = MOMENTS[self.row]
        alone = self.row in ("session", "hello")
        return strike(times, moment.endpoint, moment.then, self.place, FAULTS[self.fault], self.mux, alone)

    def wrong(self, seen: Seen) -> list[str]:
        """What differs from the cell, whatever the clock."""
        caller, migratable = CALLER[self.cell[:2]]
        wrong = list(seen.trouble)
        if (self.row, self.fault) == ("request", "duplicate"):
            wrong.remove("the handler was called 2 times")  # two requests for all that a worker can see
        for what, got, right in (
            ("the call", seen.end, caller),
            ("migratable", seen.migratable, migratable),
            ("the handler", seen.handler, HANDLER[self.cell[3]]),
            ("the bystander", seen.bystander, "Disconnected" if self.cell[4:] == "x" else "ok"),
        ):
            if got != right:
                wrong.append(f"{what}: {got}, not {right}")
        if not self._items_are_right(seen.items):
            wrong.append(f"the items: {seen.items}")
        return wrong

    def _items_are_right(self, items: list[Any]) -> bool:
        moment = MOMENTS[self.row]
        whole = OUTPUT if moment.endpoint == "converse" else ITEMS
        unseen = UNSEEN.get(self._step)
        if self.cell[:2] != "ok":
            return items == whole[: PASSED.get(self._step, moment.items)]
        if moment.then:  # it was ended early: what came is a beginning, and a handler that finished was not ended
            return items == whole[:1] or (moment.then == "stop" and items == whole)
        return items == (whole if unseen is None or (self.fault == "flip" and self.part is not Part.BODY) else unseen)

    def late(self, seen: Seen) -> list[str]:
        """What took longer than the cell says, on a turned clock."""
        caller, when, handler = self.cell[:2], self.cell[2], self.cell[3]
        step, grace = TURNED.step, TURNED.worker.cancel_grace
        # Nothing is left to do once the final item has come; before that an answer takes its time.
        usual = 1.0 if self._step[0] in ("final", "sentinel", "end") else 4 * step if caller == "ok" else 0.0
        waits = {
            ".": 0.0,
            "~": step,
            "5": TURNED.client.request_timeout,  # as much as `worker.connect_timeout`
            "H": TURNED.server.handshake_timeout,
            "C": TURNED.server.call_home_timeout,
            "e": 4 * step,
        }[when]
        limit = waits + usual
        late = []
        if caller != "wa" and not seen.after <= limit + SLACK:
            late.append(f"the call ended after {seen.after:.2f} s, not {limit:g}")
        if when in "5HC" and seen.after < waits - SLACK:
            late.append(f"the call ended after {seen.after:.2f} s already, not {waits:g}")
        handler_limit = {"k": seen.after + grace, "s": seen.after + grace, "w": 2 * step + grace}.get(handler)
        if handler_limit is not None and seen.handler_after > handler_limit + SLACK:
            late.append(f"the handler ended after {seen.handler_after:.2f} s, not {handler_limit:g}")
        # The idle timeout of a request connection (900 s), on which an answer is owed; else that of a finished answer.
        on_requests = MOMENTS[self.row].plane is Plane.REQUEST
        rest = 1.25 * (TURNED.requests.idle_timeout if on_requests else TURNED.worker.close_timeout)
        if seen.settled_after > max(seen.after, seen.handler_after) + rest:
            late.append(f"the tables were as before after {seen.settled_after:.2f} s only")
        return late


def _placed() -> list[str]:
    return PLACES.split("\n")[1].split()


def _cases(places: str, frames: str, mux: str) -> list[Case]:
    cases = []
    for line in places.strip("\n").split("\n")[1:]:
        row, part, *cells = line.split()
        cases += [Case(row, Part(part), fault, cell, mux) for fault, cell in zip(_placed(), cells, strict=True)]
    header, *lines = frames.strip("\n").split("\n")
    for line in lines:
        row, *cells = line.split()
        where = Part.BEFORE if row == "input-item-2" else Part.BODY
        cases += [Case(row, where, fault, cell, mux) for fault, cell in zip(header.split(), cells, strict=True)]
    return cases


CASES = [
    *_cases(PLACES, FRAMES, "off"),
    *_cases(SESSION_PLACES, SESSION_FRAMES, "auto"),
    *(case for case in _cases(PLACES, FRAMES, "auto") if MOMENTS[case.row].plane is not Plane.RESPONSE),
]
#: `FAULTS=all` (`make faults`) runs every cell everywhere; 5: each fifth.
SHARE = os.environ.get("FAULTS", "")
ALL = SHARE == "all"
HERE = CASES if ALL or not SHARE else CASES[:: int(SHARE)]


def _parameter(case: Case) -> Any:
    return pytest.param(case, id=case.name)


def test_the_tables_are_as_large_as_they_claim() -> None:
    assert len({(case.row, case.part) for case in CASES}) >= 21
    assert len({case.fault for case in CASES}) >= 11
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [_parameter(case) for case in HERE])
def test_on_a_turned_clock(case: Case) -> None:
    (seen,), trouble = clock.run(together(case.run(TURNED)))
    wrong = case.wrong(seen) + case.late(seen) + trouble
    assert not wrong, f"{case.name}: {case.cell}\n" + "\n".join(wrong) + f"\n{seen}"


BATCH = 49
_REAL = CASES if ALL else HERE[::5]


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run on Windows")
@pytest.mark.parametrize("first", range(0, len(_REAL), BATCH))
def test_on_uvloop(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock cannot be turned: many cells at once, with short deadlines, and only the outcome is looked at."""
    import uvloop

    monkeypatch.setattr(mux_session, "_SEEN_SECONDS", 0.1)  # shorter than a step, as on the turned clock

    cases = _REAL[first : first + BATCH]
    loop = uvloop.new_event_loop()
    try:
        seen, wrong = loop.run_until_complete(together(*(case.run(REAL) for case in cases)))
    finally:
        loop.close()
    for case, each in zip(cases, seen, strict=True):
        wrong += [f"{case.name}: {line}" for line in case.wrong(each)]
    assert not wrong, "\n".join(wrong)
