from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from dynamo_fast.context import Context
from tests.waiting import LIMIT


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
    assert await asyncio.wait_for(waiting, LIMIT) is True
    assert await context.async_killed_or_stopped() is True


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    context = Context()
    waiting = asyncio.ensure_future(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting], timeout=LIMIT)
    assert not context._callbacks


# Threads


def in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("step", [Context.stop_generating, Context.kill], ids=["stop", "kill"])
async def test_a_step_in_another_thread_is_seen_at_once_and_told_on_the_loop(step: Callable[[Context], None]) -> None:
    context = Context()
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()
    context.on_cancel(lambda: told.set_result(threading.get_ident()))
    in_a_thread(lambda: step(context))
    assert context.is_stopped()
    assert not told.done()
    assert await asyncio.wait_for(told, LIMIT) == threading.get_ident()


async def test_a_wait_is_woken_from_another_thread() -> None:
    context = Context()
    waiting = asyncio.ensure_future(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    in_a_thread(context.stop_generating)
    assert await asyncio.wait_for(waiting, LIMIT) is True
    assert not context._callbacks


async def test_each_loop_gets_its_own_callbacks() -> None:
    context = Context()
    ready = threading.Event()
    woken: list[bool] = []

    async def wait() -> bool:
        asyncio.get_running_loop().call_soon(ready.set)
        return await context.async_killed_or_stopped()

    other = threading.Thread(target=lambda: woken.append(asyncio.run(wait())))
    other.start()
    await asyncio.to_thread(ready.wait, 5)
    context.kill()
    await asyncio.to_thread(other.join, 5)
    assert woken == [True]


async def test_a_child_is_stopped_at_once_from_another_thread() -> None:
    parent, child = Context(), Context()
    unlink = parent.link_child(child)
    seen: list[bool] = []

    def stop() -> None:
        parent.stop_generating()
        seen.append(child.is_stopped())

    in_a_thread(stop)
    assert seen == [True]
    unlink()
    assert not parent._callbacks


def test_a_loop_that_is_closed_is_told_nothing() -> None:
    context = Context()

    async def register() -> None:
        context.on_cancel(lambda: None)

    asyncio.run(register())
    context.stop_generating()
    assert context.is_stopped()


def test_a_callback_that_fails_does_not_keep_the_others_from_running(caplog: pytest.LogCaptureFixture) -> None:
    context = Context("the id")
    called: list[str] = []

    def fail() -> None:
        called.append("first")
        raise ValueError("on purpose")

    context.on_cancel(fail)
    context.on_cancel(lambda: called.append("second"))
    context.stop_generating()
    assert called == ["first", "second"]
    assert "a callback of the context 'the id' failed" in caplog.text
    assert "ValueError: on purpose" in caplog.text


async def test_callbacks_and_steps_race_in_many_threads() -> None:
    """A callback that was registered before a step is called once for it; a later one sees the flag. None is lost."""
    rounds, threads = 2000, 4
    contexts = [Context() for _ in range(rounds)]
    counts = [0] * rounds

    def count(number: int) -> Callable[[], None]:
        def callback() -> None:
            counts[number] += 1

        return callback

    def steps(first: int) -> None:
        for number in range(rounds):
            at = (number + first) % rounds
            (contexts[at].kill if first % 2 else contexts[at].stop_generating)()

    def make() -> None:
        for _ in range(rounds):
            assert Context().id()

    runners = [threading.Thread(target=steps, args=(0,)) for _ in range(threads)]
    runners += [threading.Thread(target=make) for _ in range(threads)]
    waits: list[asyncio.Future[bool]] = []
    for number, context in enumerate(contexts):
        if number == rounds // 4:  # some are waited for before, some while the threads run
            for runner in runners:
                runner.start()
        context.on_cancel(count(number))
        waits.append(asyncio.ensure_future(context.async_killed_or_stopped()))
        if number % 50 == 0:
            await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.gather(*waits), 60) == [True] * rounds
    for runner in runners:
        await asyncio.to_thread(runner.join, 60)
    await asyncio.sleep(0)
    assert counts[: rounds // 4] == [1] * (rounds // 4)
    assert set(counts) <= {0, 1}


def test_a_callback_that_another_one_takes_off_is_not_called() -> None:
    context = Context()
    called: list[str] = []

    def second() -> None:
        called.append("second")

    def first() -> None:
        called.append("first")
        context.off_cancel(second)

    context.on_cancel(first)
    context.on_cancel(second)
    context.stop_generating()
    assert called == ["first"]


class Watching:
    """What is told with `watch`."""

    def __init__(self, told: list[str], name: str, then: Callable[[], object] = lambda: None) -> None:
        self.loop = asyncio.get_running_loop()
        self._told = told
        self._name = name
        self._then = then

    def context_changed(self) -> None:
        self._told.append(self._name)
        self._then()


async def test_what_watches_is_told_of_each_step_before_the_callbacks() -> None:
    context, told = Context(), list[str]()
    context.on_cancel(lambda: told.append("callback"))
    context.watch(Watching(told, "first"))
    context.watch(Watching(told, "second"))
    context.stop_generating()
    context.kill()
    assert told == ["first", "second", "callback"] * 2


async def test_what_does_not_watch_any_more_is_not_told() -> None:
    context, told = Context(), list[str]()
    second = Watching(told, "second")
    first = Watching(told, "first", lambda: context.unwatch(second))
    context.unwatch(first)  # it does not yet
    context.watch(first)
    context.watch(second)
    context.stop_generating()
    assert told == ["first"]
    context.unwatch(first)
    context.unwatch(first)
    context.kill()
    assert told == ["first"]


async def test_what_watches_is_told_on_its_loop_though_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    context, told, threads = Context(), list[str](), list[int]()
    done = asyncio.Event()

    def fail() -> None:
        threads.append(threading.get_ident())
        raise ValueError("no")

    context.watch(Watching(told, "first", fail))
    context.watch(Watching(told, "second", done.set))
    in_a_thread(context.kill)
    assert not told
    await asyncio.wait_for(done.wait(), 60)
    assert told == ["first", "second"]
    assert threads == [threading.get_ident()]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_metadata_that_was_not_given_can_be_set() -> None:
    context = Context("id")
    assert context.metadata == {}
    context.metadata["a"] = "1"
    assert context.metadata == {"a": "1"}
    context.metadata = {"b": "2"}
    assert context.metadata == {"b": "2"}
