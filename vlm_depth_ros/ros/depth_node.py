"""The depth node: camera topics in, metric depth and points out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TYPE_CHECKING

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.ros import params
from vlm_depth_ros.ros.diagnostics import Diagnostics
from vlm_depth_ros.ros.inputs import CameraInput
from vlm_depth_ros.ros.loading import check_range, load_estimator, RunningModel
from vlm_depth_ros.ros.outputs import CameraOutput
from vlm_depth_ros.ros.pipeline import DepthPipeline
from vlm_depth_ros.ros.process import one_line
from vlm_depth_ros.ros.surroundings import Surroundings
from vlm_depth_ros.ros.worker import NewestFrameWorker, Statistics

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator

LOOK_PERIOD_S = 0.25
"""How often the publishers of the images are looked at, and the search for an engine goes on. One
timer does both: each wakes the executor by itself, which costs half a millisecond of CPU."""
DIAGNOSTICS_PERIOD_S = 1.0
LOADING_PERIOD_S = 0.02
"""How often the thread that loads another model is asked whether it is done."""
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class DepthNode(LifecycleNode):
    """Lifecycle node around one `DepthEstimator` that serves one or several cameras.

    Callbacks only put the newest image of a camera into a slot; one worker thread takes the newest
    of all cameras, runs the network once on all of them and publishes. Topics are listed in
    `outputs.TOPICS`, parameters in `params.NodeParams`.

    The model can be changed while the node is configured, active or not: by setting the parameter
    `weights`, or by ``~/load_weights`` (std_srvs/Trigger), which loads the file that `weights`
    names once more, since a file may have been replaced. (Replace it by renaming another one, as
    `mv` does: what is being read must not change.) Both answer at once, with a reason where the
    file cannot be right or a model is being loaded already. The running model goes on until the
    new one has run; what fails on the way is logged, kept on /diagnostics until the next attempt,
    and sets `weights` back. Both models are in memory for that time.
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
        self._model: RunningModel | None = None
        self._loading_timer = None
        self._enabled = True
        self.statistics: list[Statistics] = []
        """Counters of each camera, in the order of the parameter `cameras`."""
        self._inputs: list[CameraInput] = []
        self._outputs: list[CameraOutput] = []
        self._surroundings: Surroundings | None = None
        self._worker: NewestFrameWorker | None = None
        self._diagnostics: Diagnostics | None = None
        self._timers_while_active: list = []
        # After the attributes: the context destroys this node too if what follows fails.
        super().__init__('depth_node', **kwargs)
        params.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_service(SetBool, '~/enable', self._on_enable)
        self.create_service(Trigger, '~/load_weights', self._on_load_weights)
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
        if self._model is not None:
            self._model.abandon()
        super().destroy_node()
        # rclpy's state machine holds on to the node. Without this the middleware is not taken down
        # before the process ends, and its 64 MB of shared memory stay allocated.
        self.__dict__.pop('_state_machine', None)

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
        with self._interruptible():
            self._model = RunningModel(self._params, self._estimator_factory)
        self._announce()
        names = self._params.cameras
        prefixes = [f'{name}/' if name else '' for name in names]
        self.statistics = [Statistics() for _ in names]
        self._inputs = [CameraInput(self, p, self._params.image_transport) for p in prefixes]
        self._outputs = [CameraOutput(self, prefix) for prefix in prefixes]
        self._surroundings = Surroundings(self, self._params)
        self._diagnostics = Diagnostics(self, names, str(self._model.estimator.device))
        pipeline = DepthPipeline(
            lambda: self._model.estimator, self._inputs, self._outputs, self._surroundings,
            self.statistics, lambda: self._params, self.get_logger(),
        )  # fmt: skip
        self._worker = NewestFrameWorker(pipeline, self.statistics)

    def _announce(self) -> None:
        model = self._model
        self.get_logger().info(
            f'{model.weights} on {model.estimator.device}, ready in {model.took_s:.1f} s.'
        )
        if model.estimator.notice:
            self.get_logger().info(model.estimator.notice)

    def _activate(self) -> None:
        self._worker.start()
        self._diagnostics.forget()
        self._surroundings.follow(self._params)
        for index, camera in enumerate(self._inputs):
            camera.subscribe(self._params.input_reliability, self._receiver(index))
            self.get_logger().info(
                f'Subscribed to {camera.image_topic} ({camera.reliability}) and '
                f'{camera.info_topic}.'
            )
        self._timers_while_active = [
            self.create_timer(period_s, callback, clock=self._steady_clock)
            for period_s, callback in (
                (LOOK_PERIOD_S, self._look_around),
                (DIAGNOSTICS_PERIOD_S, self._report),
            )
        ]

    def _stop_receiving(self, timeout_s: float) -> None:
        for timer in self._timers_while_active:
            self.destroy_timer(timer)
        self._timers_while_active = []
        for source in (*self._inputs, self._surroundings):
            if source is not None:
                source.unsubscribe()
        if self._worker is not None and not self._worker.stop(timeout_s):
            self.get_logger().warning(f'An inference still runs after {timeout_s:.0f} s.')

    def _release(self) -> None:
        if self._model is not None:
            self._model.abandon()
            self.destroy_timer(self._loading_timer)
        for output in self._outputs:
            output.destroy()
        for part in (self._surroundings, self._diagnostics):
            if part is not None:
                part.destroy()
        self._inputs, self._outputs = [], []
        self._worker = self._model = self._surroundings = self._diagnostics = None

    # In the executor: nothing here may take time.

    def _receiver(self, index: int) -> Callable[[object], None]:
        def receive(message: object) -> None:
            if self._enabled:
                self._worker.offer(index, message)

        return receive

    def _look_around(self) -> None:
        for camera in self._inputs:
            camera.follow_publishers(self._params.input_reliability)
        self._surroundings.follow(self._params)
        trouble = self._model.look_for_engine(sum(s.published for s in self.statistics))
        if trouble:
            self.get_logger().warning(
                f'Looking for an engine faster than {self._model.estimator.ways.at_hand}: '
                f'{trouble}'
            )

    def _report(self) -> None:
        reliabilities = [camera.reliability for camera in self._inputs]
        self._diagnostics.publish(
            self.statistics, reliabilities, self._enabled, self._model.described()
        )

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        response.success = True
        response.message = 'enabled' if self._enabled else 'disabled: images are dropped'
        return response

    def _on_load_weights(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        try:
            self._begin_loading(params.read(self))
        except Exception as err:  # It would end the node.
            response.success, response.message = False, one_line(err)
            return response
        response.success = True
        response.message = 'loading beside the running model; log and /diagnostics tell the end'
        return response

    def _begin_loading(self, wanted: params.NodeParams) -> None:
        """Load what `wanted` names beside the running model; refuses what cannot work."""
        if self._model is None:
            raise ConfigError(
                'no model to change: the node is unconfigured. Configuring it loads the weights.'
            )
        self._model.begin(wanted.weights, wanted.runtime())
        self._loading_timer = self.create_timer(
            LOADING_PERIOD_S, self._look_at_loading, clock=self._steady_clock
        )

    def _look_at_loading(self) -> None:
        """Swap the models once the new one is there; the worker looks before each frame."""
        model = self._model
        if model is None or not model.is_decided():
            return
        self.destroy_timer(self._loading_timer)
        if model.take_successor(self._params):
            self._announce()
            return
        self.get_logger().error(f'{model.weights} goes on: {model.trouble}')
        # Said before, so that setting it is no change, which would load.
        self._params = replace(self._params, weights=model.weights)
        self.set_parameters([Parameter('weights', value=model.weights)])

    def _on_parameters(self, proposed: list[Parameter]) -> SetParametersResult:
        try:
            candidate = params.changed(self, proposed, configured=self._model is not None)
            if self._model is not None:
                check_range(self._model.estimator, candidate)
                if candidate.weights != self._params.weights:
                    self._begin_loading(candidate)
        except Exception as err:  # It would end the node.
            return SetParametersResult(successful=False, reason=one_line(err))
        self._params = candidate
        return SetParametersResult(successful=True)
