"""Which executor spins a node: rclpy's single-threaded one, or its experimental one of events."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.context import Context
    from rclpy.executors import Executor
    from rclpy.node import Node

SELF_TEST_S = 1.0
"""An executor that has not called a timer of one millisecond after so long never will; short
enough for a signal that comes meanwhile to end the process in time."""
SPIN_S = 1.0
"""Most that one call of `spin_once` waits. Without a limit the events executor of the PyPI wheels
overflows its deadline and turns in a loop that lets no other thread in (measured)."""


def executor_for(node: 'Node') -> 'tuple[Executor, str]':
    """The executor that the parameter `executor` of a node asks for, with the node in it.

    ``events`` waits in the middleware, instead of asking it about everything before each
    callback. It is experimental, absent before Jazzy, and that it can be imported says little: so
    it must have called a timer before a node relies on it.

    Returns:
        It, and why it is the single-threaded one where another was asked for, in a sentence;
        empty otherwise, and for a node that has no such parameter.
    """
    from rclpy.executors import SingleThreadedExecutor

    wanted = node.get_parameter('executor').value if node.has_parameter('executor') else 'single'
    executor, trouble = None, ''
    if wanted == 'events':
        executor, trouble = _tried_events_executor(node.context)
    executor = executor or SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    if trouble:
        trouble = f'executor = events: {trouble} The single-threaded one spins the node instead.'
    return executor, trouble


def _tried_events_executor(context: 'Context') -> 'tuple[Executor | None, str]':
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return None, 'this rclpy has no rclpy.experimental.EventsExecutor.'
    executor = EventsExecutor(context=context)
    try:
        if _ticks(executor, context):
            return executor, ''
        trouble = f'it did not call a timer within {SELF_TEST_S:.0f} s.'
    except RuntimeError as err:
        trouble = f'it fails ({err}).'
    executor.shutdown(timeout_sec=0.5)
    return None, trouble


def _ticks(executor: 'Executor', context: 'Context') -> bool:
    """Whether it calls a timer of a node that exists for this only."""
    from rclpy.clock import Clock, ClockType
    from rclpy.node import Node

    probe = Node(
        'executor_probe', context=context, use_global_arguments=False, enable_rosout=False,
        start_parameter_services=False,
    )  # fmt: skip
    ticks: list[float] = []
    try:
        # Not on ROS time, which may stand still.
        steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        probe.create_timer(0.001, lambda: ticks.append(time.monotonic()), clock=steady_clock)
        executor.add_node(probe)
        end_s = time.monotonic() + SELF_TEST_S
        while not ticks and time.monotonic() < end_s:
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.remove_node(probe)
        probe.destroy_node()
    return bool(ticks)
