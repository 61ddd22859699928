from __future__ import annotations

import asyncio

import pytest

from dynamo_fast.context import Context


def test_every_request_has_an_id_of_its_own() -> None:
    assert Context().id() != Context().id()
    assert Context("mine").id() == "mine"
    assert Context("").id() == ""


def test_metadata_maps_texts_and_is_copied() -> None:
    given = {"a": "1"}
    context = Context("id", given)
    given["b"] = "2"
    assert context.metadata == {"a": "1"}
    view = context.metadata
    context.metadata = {"c": "3"}
    assert view == {"c": "3"}


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}])
def test_other_metadata_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="metadata maps str to str"):
        Context("id", metadata)


def test_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="id must be str, not int"):
        Context(7)  # type: ignore[arg-type]


def test_a_context_goes_one_way() -> None:
    steps: list[tuple[bool, bool]] = []
    context = Context()
    context.on_cancel(lambda: steps.append((context.is_stopped(), context.is_killed())))
    for step in (context.stop_generating, context.stop_generating, context.kill, context.kill, context.stop_generating):
        step()
    assert steps == [(True, False), (True, True)]


def test_killed_implies_stopped() -> None:
    context = Context()
    context.kill()
    assert (context.is_stopped(), context.is_killed()) == (True, True)


def test_a_callback_may_take_another_off() -> None:
    context = Context()
    called: list[str] = []

    def second() -> None:
        called.append("second")

    def first() -> None:
        called.append("first")
        context.off_cancel(first)

    context.on_cancel(first)
    context.on_cancel(second)
    context.stop_generating()
    context.kill()
    assert called == ["first", "second", "second"]


def test_children_follow_their_parent_until_they_are_unlinked() -> None:
    parent, child, other = Context(), Context(), Context()
    parent.link_child(child)
    unlink = parent.link_child(other)
    parent.stop_generating()
    assert (child.is_stopped(), child.is_killed(), other.is_stopped()) == (True, False, True)
    unlink()
    parent.kill()
    assert (child.is_killed(), other.is_killed()) == (True, False)
    late = Context()
    parent.link_child(late)
    assert late.is_killed()


async def test_waiting_for_the_end() -> None:
    context = Context()
    waiting = asyncio.ensure_future(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    assert not waiting.done()
    context.stop_generating()
    assert await asyncio.wait_for(waiting, 5) is True
    assert await context.async_killed_or_stopped() is True


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    context = Context()
    waiting = asyncio.ensure_future(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=5)
    assert not context._callbacks
