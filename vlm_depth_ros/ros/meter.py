"""CPU time of functions, each wrapped from outside."""

from collections import Counter
from collections.abc import Callable
from functools import wraps
import os
import threading
import time
from typing import Any


class Meter:
    """CPU time by stage, where an inner stage is not counted in the outer one."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.spent_ns: Counter[str] = Counter()
        self.threads: tuple[int, ...] = ()
        """Those of `follow`, the helped one first."""
        self._files: list[int] = []
        self._local = threading.local()

    def follow(self, helped: int, helpers: list[int]) -> None:
        """Count the CPU of `helpers` to the stages of the thread `helped`, from now on.

        Args:
            helped: Id of a thread, the kernel's.
            helpers: Likewise; what tensor operations of `helped` run on.
        """
        self._files = [os.open(f'/proc/self/task/{i}/schedstat', os.O_RDONLY) for i in helpers]
        self.threads = helped, *helpers

    def metered(self, stage: str, function: Callable) -> Callable:
        """The same function; what it takes is counted."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before_ns = getattr(self._local, 'inner_ns', 0)
            self._local.inner_ns = 0
            start_ns = self._now_ns()
            try:
                return function(*args, **kwargs)
            finally:
                took_ns = self._now_ns() - start_ns
                self.spent_ns[stage] += took_ns - self._local.inner_ns
                self._local.inner_ns = before_ns + took_ns

        return call

    def _now_ns(self) -> int:
        now_ns = time.thread_time_ns()
        if self.threads and threading.get_native_id() == self.threads[0]:
            now_ns += sum(int(os.pread(file, 64, 0).split()[0]) for file in self._files)
        return now_ns
