"""The threads and event loops of discovery.

    thread of the caller                            thread of the store (a daemon, one for each store)
    an event loop: asyncio's or uvloop              an event loop: ThreadLoop
    ------------------------------------            ----------------------------------------------------
    Discovery, ThreadStore, ThreadBucket            FileBucket, Folder, EtcdBucket, EtcdClient, ...
      register, list, watch  --- submit, run -->      the work: files, or calls to etcd
      the result             <---- future ------
    Subscription                                    BackgroundLoop, each a task:
      listener(event)        <----- tell -------      the heartbeat (one for each store)
                                                      a watch (etcd: for each prefix that is watched;
                                                      files: for each directory, without inotify)

Why a thread: a heartbeat must not stop because a handler blocks the caller's loop, and a slow network file system must
not delay the caller's requests. `MemoryStore` has neither, and no thread.

Who may do what: the store's thread alone does I/O and changes the tables, so they need no locks. Callers hand work over
with `submit`, `run` or `wait_for`, which any thread may call. A listener is called on the loop that it came from.

How it ends: `Discovery.close` ends the loops, then the thread. An object that was not closed removes its records when
the interpreter exits (`at_exit`). In a forked child nothing runs, and every call is refused.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import random
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from dynamo_fast.errors import DynamoError, InvalidRequest
from dynamo_fast.logs import get_logger

__all__ = ["BackgroundLoop", "BackgroundThread"]

logger = get_logger(__name__)

FIRST_RETRY = 0.5
"""Seconds from a first failure to the next attempt; each further pause is twice as long."""
LAST_RETRY = 4.0
"""The longest of these pauses."""
STOP_TIMEOUT = 2.0
"""Seconds to wait for a thread to end, and for records to be withdrawn when the interpreter exits."""

_T = TypeVar("_T")


class BackgroundLoop:
    """Runs a step again and again; a step returns the seconds until the next one.

    No exception ends it, of whatever class, a stray CancelledError included. A failure is logged once until a step works
    again. The pauses after failures grow from FIRST_RETRY to LAST_RETRY.

    Owns a task of the event loop on which it was made, and is called there. Made by `BackgroundThread.keep`; ends with
    `cancel` alone.
    """

    def __init__(self, what: str, step: Callable[[], Awaitable[float]]) -> None:
        self._what = what
        self._step = step
        self._failures = 0
        self._restarted = False
        self._ended = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def working(self) -> None:
        """Called by a step that takes long, once it does its work: earlier failures are over."""
        if self._failures:
            logger.warning("%s works again after %d failed attempts", self._what, self._failures)
            self._failures = 0

    def restart(self) -> None:
        """Interrupt the step or the pause that is under way; the next step begins at once."""
        self._restarted = True
        self._task.cancel()

    def cancel(self) -> None:
        """End the loop; may be called twice."""
        self._ended = True
        self._task.cancel()

    async def _run(self) -> None:
        while not self._ended:
            self._restarted = False
            pause = 0.0
            try:
                pause = await self._step()
                self.working()
            except GeneratorExit:  # Python destroys the coroutine
                raise
            except BaseException as error:  # noqa: BLE001, RUF100  # the purpose of this class
                if not (self._ended or self._restarted):
                    pause = self._failed(error)
            try:
                await asyncio.sleep(0.0 if self._ended or self._restarted else pause)
            except asyncio.CancelledError:
                pass  # from `restart` or `cancel`

    def _failed(self, error: BaseException) -> float:
        """The pause after this failure."""
        if self._failures == 0:
            expected = isinstance(error, (DynamoError, OSError))
            logger.warning(
                "%s failed and will be tried again: %s", self._what, _text(error), exc_info=None if expected else error
            )
        pause = min(FIRST_RETRY * 2.0 ** min(self._failures, 16), LAST_RETRY)
        self._failures += 1
        return pause * random.uniform(0.75, 1.0)  # noqa: S311  # many processes must not all retry at the same moment


class BackgroundThread:
    """A daemon thread with an event loop. See the overview at the top of this file.

    Owns the thread, its `ThreadLoop` and the `BackgroundLoop`s that run there. Owned by a `ThreadStore`. Every method
    may be called from any thread, unless it says otherwise. The thread starts on first use. It ends with `stop` or
    `end`, when the interpreter exits, and is not there in a forked child.
    """

    def __init__(self, name: str) -> None:
        self.at_exit: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Run in the thread when the interpreter exits; for the records that this process still has."""
        self.at_end: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Run in the thread as the last thing, after every loop and call has ended; for connections and descriptors."""
        self._name = name
        self._loops: set[BackgroundLoop] = set()
        self._loop: ThreadLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stopped = False
        self._process = os.getpid()
        # A signal handler may submit work while this thread submits: it must not wait for itself.
        self._lock: contextlib.AbstractContextManager[object] = threading.RLock()
        _threads.add(self)

    @property
    def running(self) -> bool:
        """Whether there is a thread that takes work."""
        return self._thread is not None and not self._stopped and not self.forked

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that made it."""
        return self._process != os.getpid()

    def time(self) -> float:
        """The clock of the thread, in seconds; it never goes back. Called in the thread, or after it has started."""
        assert self._loop is not None
        return self._loop.time()

    def submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Begin `work` in the thread. Raises InvalidRequest if the thread was stopped, or belongs to a parent process."""
        with self._lock:
            try:
                return asyncio.run_coroutine_threadsafe(work, self._started())
            except BaseException:
                work.close()
                raise

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, which runs in the thread; if the caller is cancelled, so is the work."""
        return await asyncio.wrap_future(self.submit(work))

    def wait_for(self, work: Coroutine[Any, Any, None], timeout: float) -> None:
        """Wait for `work` without an event loop. Raises TimeoutError (of concurrent.futures) after `timeout` seconds.

        In the thread itself this only begins the work, since the thread cannot wait for itself.
        """
        future = self.submit(work)
        if threading.current_thread() is not self._thread:
            future.result(timeout)

    def keep(self, what: str, step: Callable[[], Awaitable[float]]) -> BackgroundLoop:
        """A loop of the thread, which ends with it. Called in the thread only."""
        loop = BackgroundLoop(what, step)
        self._loops.add(loop)
        return loop

    def drop(self, loop: BackgroundLoop) -> None:
        """End that loop. Called in the thread only."""
        loop.cancel()
        self._loops.discard(loop)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End every loop and the thread, and wait for that; no more work is taken. May be called twice."""
        if self._begin_to_stop() and threading.current_thread() is not self._thread:
            assert self._thread is not None
            self._thread.join(timeout)

    async def end(self) -> None:
        """The same as `stop`, for a caller on an event loop, which goes on meanwhile."""
        if self._begin_to_stop():
            await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=STOP_TIMEOUT)
            self.stop(timeout=0.1)

    def abandon(self) -> None:
        """Called in a forked child: the thread is not here, and the event loop's descriptors are the parent's."""
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._stopped = True
        if self._loop is not None:
            self._loop.abandon()

    def _started(self) -> ThreadLoop:
        if self.forked:
            raise InvalidRequest(f"this discovery object belongs to process {self._process}: make one after the fork")
        if self._stopped:
            raise InvalidRequest("this discovery object is closed")
        if self._loop is None:
            loop = ThreadLoop()
            self._thread = threading.Thread(target=self._main, args=(loop,), name=self._name, daemon=True)
            self._loop = loop  # first: a signal handler may come here again while the thread starts
            self._thread.start()
        return self._loop

    def _main(self, loop: ThreadLoop) -> None:
        while not self._stopped:
            try:
                loop.run_forever()
            except BaseException:  # noqa: BLE001, RUF100  # SystemExit of a callback, for one
                logger.exception("%s: the event loop was interrupted and goes on", self._name)
        loop.close()
        self._ended.set_result(None)

    def _begin_to_stop(self) -> bool:
        """Whether there is a thread to wait for."""
        with self._lock:
            already, self._stopped = self._stopped, True
            if self._loop is None or self.forked:
                return False
            if not already:
                asyncio.run_coroutine_threadsafe(self._finish(self._loop), self._loop)
            return True

    async def _finish(self, loop: ThreadLoop) -> None:
        for each in self._loops:
            each.cancel()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT / 2)
        try:
            if self.at_end is not None:
                await self.at_end()
            await loop.shutdown_asyncgens()
        except Exception:
            logger.exception("%s: closing failed; the process keeps its connections until it ends", self._name)
        loop.stop()


class ThreadLoop(asyncio.SelectorEventLoop):
    """The event loop of a thread. Its `time()` is the clock of everything in that thread.

    Owned by a `BackgroundThread`, which closes it. A forked child must not touch it: that would change what the parent's
    selector watches.
    """

    _abandoned = False

    def abandon(self) -> None:
        """Claim to be closed, without closing anything."""
        self._abandoned = True

    def is_closed(self) -> bool:
        return self._abandoned or super().is_closed()


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose text cannot be made
        return type(error).__name__


_threads: weakref.WeakSet[BackgroundThread] = weakref.WeakSet()


def _abandon_all() -> None:
    for each in list(_threads):
        each.abandon()


def _stop_all() -> None:
    """At interpreter exit: withdraw the records of every object that was not closed."""
    running = [each for each in list(_threads) if each.running]
    withdrawals = [each.submit(each.at_exit()) for each in running if each.at_exit is not None]
    concurrent.futures.wait(withdrawals, timeout=STOP_TIMEOUT)
    for each in running:
        each.stop(timeout=STOP_TIMEOUT / 2)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon_all)
atexit.register(_stop_all)
