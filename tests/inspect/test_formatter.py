from __future__ import annotations

import json

import pytest

from dynamo_fast.inspect import Closed, Failed, Formatter, Frame, FrameSeen, Opened
from dynamo_fast.wire.text import printable
from tests.captured import captured


def test_a_line_for_people() -> None:
    ack = Frame("<", "ack", 4, 4)
    assert Formatter().frame(ack, number=3, time=3661.5) == "01:01:01.500000 #3 < ack       @4 4 B"
    assert Formatter().event(FrameSeen(3, ack, 3661.5)) == ["01:01:01.500000 #3 < ack       @4 4 B"]
    assert Formatter().event(FrameSeen(3, ack)) == ["#3 < ack       @4 4 B"]
    assert Formatter().event(Opened(3, "a:1", "b:2")) == ["#3 a:1 dials b:2"]
    assert Formatter().event(Closed(3, "FIN")) == ["#3 closed (FIN)"]
    assert Formatter().event(Failed("the file is cut")) == ["the file is cut"]
    assert Formatter().event(Failed("cannot be dialled", 3)) == ["#3 cannot be dialled"]


def test_a_line_for_tools() -> None:
    lines = Formatter(as_json=True)
    ack = {"direction": "<", "kind": "ack", "offset": 4, "size": 4}
    assert json.loads(lines.frame(Frame("<", "ack", 4, 4))) == ack
    (line,) = lines.event(FrameSeen(3, Frame("<", "ack", 4, 4), 3661.5))
    assert json.loads(line) == {"connection": 3, "time": 3661.5, **ack}
    (line,) = lines.event(Opened(3, "a:1", "b:2"))
    assert json.loads(line) == {"connection": 3, "kind": "connection", "dialler": "a:1", "listener": "b:2"}
    (line,) = lines.event(Closed(3, "RST"))
    assert json.loads(line) == {"connection": 3, "kind": "note", "text": "closed (RST)"}
    (line,) = lines.event(Failed("the file is cut"))
    assert json.loads(line) == {"kind": "note", "text": "the file is cut"}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_connection_that_was_joined_midway_has_a_second_line(as_json: bool) -> None:
    first, second = Formatter(as_json=as_json).event(Opened(1, "a:1", "b:2", midway=True))
    assert "a:1" in first
    assert "the beginning of this connection was not captured" in second


def test_colours() -> None:
    ack = Frame("<", "ack", 4, 4)
    assert "\x1b" not in Formatter().frame(ack)
    assert Formatter(colour=True).frame(ack).startswith("\x1b[32m<\x1b[0m \x1b[1mack")
    assert Formatter(colour=True).event(Closed(1, "FIN")) == ["\x1b[2m#1 closed (FIN)\x1b[0m"]
    damage = Frame("<", "damage", 0, 4, problems=["byte 0: bad"])
    assert "\x1b[1;31mdamage" in Formatter(colour=True).frame(damage)
    assert "\x1b[31m! byte 0: bad" in Formatter(colour=True).frame(damage)


def test_a_number_of_more_than_64_bits_is_json() -> None:
    frame = Frame("<", "item", 0, 1, content={"data": {"a": 2**70}})
    assert json.loads(Formatter(as_json=True).frame(frame))["content"] == {"data": {"a": 2**70}}


def test_a_peer_cannot_write_to_the_terminal() -> None:
    assert printable("plain é 😀") == "plain é 😀"
    for vector in captured():
        assert printable(vector.data.decode("latin-1")).isprintable()
    refusal = Frame("<", "refusal", 0, 4, content={"text": "\x1b]0;owned\x07"}, problems=["\x9b2J"])
    line = Formatter().frame(refusal)
    assert line.isprintable()
