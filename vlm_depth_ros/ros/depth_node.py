"""The depth node: camera topics in, metric depth and points out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
import sys
import time
from typing import Any, TYPE_CHECKING

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError, VlmDepthError
from vlm_depth_ros.ros import params
from vlm_depth_ros.ros.diagnostics import Diagnostics
from vlm_depth_ros.ros.inputs import CameraInput
from vlm_depth_ros.ros.outputs import CameraOutput
from vlm_depth_ros.ros.pipeline import DepthPipeline
from vlm_depth_ros.ros.process import one_line
from vlm_depth_ros.ros.worker import NewestFrameWorker, Statistics

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator

WARM_UP_HW = (480, 640)
"""Size of the image that the network is warmed up with; other sizes work, the first one slower."""
FOLLOW_PERIOD_S = 0.25
"""How often the publishers of the images are looked at."""
DIAGNOSTICS_PERIOD_S = 1.0
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def load_estimator(weights: str, runtime: RuntimeConfig) -> 'DepthEstimator':
    """Load the network.

    Raises:
        DependencyError: If PyTorch or open_clip is not installed for this interpreter.
        WeightsError: If the weights are missing, damaged or foreign.
    """
    try:
        from vlm_depth_ros.core.estimator import DepthEstimator
    except ImportError as err:
        raise DependencyError(
            f'{err}. The network needs torch and open_clip_torch in {sys.executable}: install '
            'them there, or start the node with an interpreter that has them (launch argument '
            "'python')."
        ) from err
    return DepthEstimator.from_weights(weights, runtime)


class DepthNode(LifecycleNode):
    """Lifecycle node around one `DepthEstimator` that serves one or several cameras.

    Callbacks only put the newest image of a camera into a slot; one worker thread takes the newest
    of all cameras, runs the network once on all of them and publishes. Topics are listed in
    `outputs.TOPICS`, parameters in `params.NodeParams`.
    """

    def __init__(
        self,
        *,
        estimator_factory: Callable[[str, RuntimeConfig], 'DepthEstimator'] = load_estimator,
        interruptible: Callable[[], AbstractContextManager] = nullcontext,
        **kwargs: Any,
    ):
        """Declare parameters; with `autostart`, configure and activate as soon as somebody spins.

        Args:
            estimator_factory: Makes the network from the parameter `weights` and the runtime.
            interruptible: Surrounds the loading of the network, so that a signal can end it.
            kwargs: For `LifecycleNode`: context, namespace, parameter_overrides, ...
        """
        self._estimator_factory = estimator_factory
        self._interruptible = interruptible
        self._params: params.NodeParams | None = None
        self._estimator: DepthEstimator | None = None
        self._enabled = True
        self.statistics: list[Statistics] = []
        """Counters of each camera, in the order of the parameter `cameras`."""
        self._inputs: list[CameraInput] = []
        self._outputs: list[CameraOutput] = []
        self._worker: NewestFrameWorker | None = None
        self._diagnostics: Diagnostics | None = None
        self._timers_while_active: list = []
        # After the attributes: the context destroys this node too if what follows fails.
        super().__init__('depth_node', **kwargs)
        params.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_service(SetBool, '~/enable', self._on_enable)
        # Not on ROS time, which stands still until somebody publishes /clock.
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._autostart_timer = None
        if self.get_parameter('autostart').value:
            self._autostart_timer = self.create_timer(
                0.0, self._autostart, clock=self._steady_clock
            )

    # Transitions: rclpy swallows what they raise, so each one reports for itself.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read parameters, load and warm up the network, offer the outputs."""
        try:
            self._configure()
        except Exception as err:
            self._release()
            self.get_logger().error(f'Cannot configure: {one_line(err)}')
            return FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker and subscribe."""
        try:
            self._activate()
        except Exception as err:
            self._stop_receiving(timeout_s=10.0)
            self.get_logger().error(f'Cannot activate: {one_line(err)}')
            return FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and let the worker end."""
        self._stop_receiving(timeout_s=10.0)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the network and withdraw the outputs."""
        result = super().on_cleanup(state)
        self._release()
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop everything, from whatever state."""
        self._stop_receiving(timeout_s=10.0)
        result = super().on_shutdown(state)
        self._release()
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured after an error that nobody foresaw."""
        self.get_logger().error(f'Error while {state.label}: back to unconfigured.')
        self._stop_receiving(timeout_s=10.0)
        self._release()
        return SUCCESS

    def destroy_node(self) -> None:
        """Stop the worker and destroy the node; waits a second at most."""
        self._stop_receiving(timeout_s=1.0)
        super().destroy_node()
        # rclpy's state machine holds on to the node. Without this the middleware is not taken down
        # before the process ends, and its 64 MB of shared memory stay allocated.
        self.__dict__.pop('_state_machine', None)

    def idle(self) -> bool:
        """Whether no inference is running."""
        return self._worker is None or not self._worker.is_running()

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()
            return
        name = self.get_fully_qualified_name()
        self.get_logger().error(
            f'Waiting unconfigured. Set the parameter right, then: ros2 lifecycle set {name} '
            f'configure; ros2 lifecycle set {name} activate'
        )

    def _configure(self) -> None:
        self._params = params.read(self)
        start_s = time.monotonic()
        with self._interruptible():
            estimator = self._estimator_factory(self._params.weights, self._params.runtime())
            _check_range(estimator, self._params)
            estimator.warm_up(WARM_UP_HW)
        self._estimator = estimator
        self.get_logger().info(
            f'{estimator.name} on {estimator.device}, ready in {time.monotonic() - start_s:.1f} s.'
        )
        if estimator.notice:
            self.get_logger().info(estimator.notice)
        names = self._params.cameras
        prefixes = [f'{name}/' if name else '' for name in names]
        self.statistics = [Statistics() for _ in names]
        self._inputs = [CameraInput(self, p, self._params.image_transport) for p in prefixes]
        self._outputs = [CameraOutput(self, prefix) for prefix in prefixes]
        self._diagnostics = Diagnostics(self, names, str(estimator.device))
        pipeline = DepthPipeline(
            estimator, self._inputs, self._outputs, self.statistics,
            lambda: self._params, self.get_logger(),
        )  # fmt: skip
        self._worker = NewestFrameWorker(pipeline, self.statistics)

    def _activate(self) -> None:
        self._worker.start()
        self._diagnostics.forget()
        for index, camera in enumerate(self._inputs):
            camera.subscribe(self._params.input_reliability, self._receiver(index))
            self.get_logger().info(
                f'Subscribed to {camera.image_topic} ({camera.reliability}) and '
                f'{camera.info_topic}.'
            )
        self._timers_while_active = [
            self.create_timer(period_s, callback, clock=self._steady_clock)
            for period_s, callback in (
                (FOLLOW_PERIOD_S, self._follow_publishers),
                (DIAGNOSTICS_PERIOD_S, self._report),
            )
        ]

    def _stop_receiving(self, timeout_s: float) -> None:
        for timer in self._timers_while_active:
            self.destroy_timer(timer)
        self._timers_while_active = []
        for camera in self._inputs:
            camera.unsubscribe()
        if self._worker is not None and not self._worker.stop(timeout_s):
            self.get_logger().warning(f'An inference still runs after {timeout_s:.0f} s.')

    def _release(self) -> None:
        for output in self._outputs:
            output.destroy()
        if self._diagnostics is not None:
            self._diagnostics.destroy()
        self._inputs, self._outputs, self._diagnostics = [], [], None
        self._worker = self._estimator = None

    # In the executor: nothing here may take time.

    def _receiver(self, index: int) -> Callable[[object], None]:
        def receive(message: object) -> None:
            if self._enabled:
                self._worker.offer(index, message)

        return receive

    def _follow_publishers(self) -> None:
        for camera in self._inputs:
            camera.follow_publishers(self._params.input_reliability)

    def _report(self) -> None:
        reliabilities = [camera.reliability for camera in self._inputs]
        self._diagnostics.publish(self.statistics, reliabilities, self._enabled)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        response.success = True
        response.message = 'enabled' if self._enabled else 'disabled: images are dropped'
        return response

    def _on_parameters(self, proposed: list[Parameter]) -> SetParametersResult:
        try:
            candidate = params.changed(self, proposed, configured=self._estimator is not None)
            if self._estimator is not None:
                _check_range(self._estimator, candidate)
        except VlmDepthError as err:
            return SetParametersResult(successful=False, reason=str(err))
        self._params = candidate
        return SetParametersResult(successful=True)


def _check_range(estimator: 'DepthEstimator', candidate: params.NodeParams) -> None:
    """Refuse limits that leave nothing of the model's own range."""
    low_m, high_m = estimator.range_m(candidate.output_options())
    if low_m >= high_m:
        own = ' to '.join(f'{limit:g}' for limit in estimator.config.depth_range_m)
        raise ConfigError(
            f'min_depth_m = {candidate.min_depth_m:g}, max_depth_m = {candidate.max_depth_m:g}: '
            f'nothing is left of the {own} m that {estimator.name} was trained for.'
        )
