"""How an executable of this package starts, spins and ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
import signal
import sys
import threading

from vlm_depth_ros.core.errors import VlmDepthError
from vlm_depth_ros.core.threads import nap_between_operations
from vlm_depth_ros.ros.profile import use_large_segment

DEADLINE_S = 1.6
"""A process that has not ended so long after a signal is ended: the promise is two seconds."""


class Interrupted(BaseException):
    """A signal came inside `interruptible`; no ``except Exception`` on the way may hold it."""

    def __str__(self) -> str:
        """Pass on instead: rclpy's events executor logs what comes by as fatal, with a trace."""
        raise self


class Stop:
    """The wish that this process ends: from a signal, or from a node that is done."""

    def __init__(self) -> None:
        """Start without the wish."""
        self.exit_code = 0
        self.by_signal = False
        """Whether a signal asked for it."""
        self._event = threading.Event()
        self._wake: Callable[[], None] = lambda: None
        self._interruptible = False

    def is_set(self) -> bool:
        """Whether it shall end."""
        return self._event.is_set()

    def request(self, exit_code: int = 0) -> None:
        """Ask for the end, from any thread."""
        if not self._event.is_set():
            self.exit_code = exit_code
        self._event.set()
        self._wake()

    def on_request(self, wake: Callable[[], None]) -> None:
        """Call `wake` at the request, or now if it came already."""
        self._wake = wake
        if self.is_set():
            wake()

    def install_signals(self) -> None:
        """Make SIGINT and SIGTERM request the end with exit code 0.

        Python runs its handlers in the main thread and between two bytecodes only, and the main
        thread may wait inside the middleware or load weights. So the byte that the interpreter
        writes to a pipe at once wakes a thread, which wakes the main thread, and which ends the
        process if that does not help in time. rclpy's own handlers would leave a running
        transition or inference alone.
        """
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, args=(read_fd,), daemon=True).start()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal break off what runs inside, in the main thread, by `Interrupted`."""
        self._interruptible = True
        try:
            if self.is_set():
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: object) -> None:
        self.by_signal = True
        self._event.set()
        if self._interruptible:
            self._interruptible = False
            raise Interrupted

    def _watch(self, read_fd: int) -> None:
        wanted = {signal.SIGINT, signal.SIGTERM}
        while not wanted.intersection(os.read(read_fd, 1)):
            pass
        self.by_signal = True
        self.request()
        threading.Event().wait(DEADLINE_S)
        leave_now(self.exit_code)


def leave_now(exit_code: int) -> None:
    """End the process without Python's own clean-up.

    That takes two seconds with PyTorch on a busy machine, and waits for a running inference.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def run(create_node: Callable[[Stop], object], args: list[str] | None = None) -> int:
    """Create a node and spin it until it asks for the end or a signal comes.

    Args:
        create_node: Gets the `Stop` of this process.
        args: Command line; ``sys.argv`` by default.

    Returns:
        The exit code, 1 after an error, which is logged in one line. After a signal it does not
        return: the process ends with 0.
    """
    nap_between_operations()
    stop = Stop()
    stop.install_signals()
    warning = use_large_segment()
    # Only now: these imports take half a second, longer on a small board, and a signal may come.
    import rclpy
    from rclpy.exceptions import NameValidationException, ParameterException
    from rclpy.logging import get_logger
    from rclpy.signals import SignalHandlerOptions
    from vlm_depth_ros.ros.executors import executor_for, SPIN_S

    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as err:
        get_logger('vlm_depth_ros').fatal(f'The command line is not understood: {one_line(err)}')
        return 1
    node = executor = None
    try:
        node = create_node(stop)
        if warning:
            node.get_logger().warning(warning)
        executor, trouble = executor_for(node)
        if trouble:
            node.get_logger().warning(trouble)
        # To wake an executor only makes it look again; with something to do it returns.
        stop.on_request(lambda: executor.create_task(lambda: None))
        while rclpy.ok() and not stop.is_set():
            executor.spin_once(timeout_sec=SPIN_S)
    except Interrupted:
        pass
    except (VlmDepthError, ParameterException, NameValidationException) as err:
        get_logger('vlm_depth_ros').fatal(one_line(err))
        stop.request(exit_code=1)
    finally:
        stop.on_request(lambda: None)  # The executor goes now; a second signal may still come.
        if executor is not None:
            executor.remove_node(node)
            executor.shutdown(timeout_sec=0.2)  # The one of events holds on to the node's parts.
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    if stop.by_signal:
        leave_now(stop.exit_code)
    return stop.exit_code


def one_line(err: BaseException) -> str:
    """Return the message of an error in one line, with its type where it is not one of ours."""
    text = ' '.join(str(err).split())
    return text if isinstance(err, VlmDepthError) else f'{type(err).__name__}: {text}'
