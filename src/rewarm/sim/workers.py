"""A pool of processes for runs that take long. None of them outlives the `with` in which it works."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from rewarm.kernel import die_with

P = ParamSpec("P")
T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")  # threads of the caller (a progress bar) and fork do not mix


class Workers(ProcessPoolExecutor):
    """Ends as its base does, when all is done; but at once if an exception, Ctrl-C among them, leaves its `with`."""

    def __init__(self, jobs: int, begin: Callable[..., None] | None = None, *arguments: object) -> None:
        """Each process calls `begin(*arguments)` first."""
        self._not_ours = set(multiprocessing.active_children())
        super().__init__(jobs, SPAWN, _begin, (os.getpid(), begin, arguments))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # This may start a process, which inherits what is blocked: Ctrl-C goes to all processes of a terminal, and
        # what to do about it is for this one to say.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - self._not_ours:
                process.kill()
        return super().__exit__(kind, error, traceback)


def _begin(parent_pid: int, begin: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    die_with(parent_pid)  # whoever is killed half way leaves nothing running
    if begin is not None:
        begin(*arguments)
