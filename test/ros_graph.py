"""A real ROS graph for tests: the depth node around a stand-in network, and a camera beside it.

Everything is the real thing, over real DDS, except the network: it answers a known depth after a
chosen time and counts its calls. Run as a program, it is that node in a process of its own.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
import os
import sys
import threading
import time
from typing import NamedTuple

import numpy as np

# Each test process has a domain of its own; above 101 the ports would be those of other programs.
DOMAIN_ID = int(os.environ.get('VLM_DEPTH_TEST_DOMAIN', 10 + os.getpid() % 90))
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = os.environ['VLM_DEPTH_TEST_DOMAIN'] = str(DOMAIN_ID)

import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera  # noqa: E402
from vlm_depth_ros.core.errors import WeightsError  # noqa: E402
from vlm_depth_ros.core.estimator import DepthEstimator  # noqa: E402
from vlm_depth_ros.core.features import BackboneSpec  # noqa: E402
from vlm_depth_ros.core.frames import Frame  # noqa: E402
from vlm_depth_ros.core.heads.base import HeadOutput  # noqa: E402
from vlm_depth_ros.core.options import OutputOptions  # noqa: E402
from vlm_depth_ros.ros.depth_node import DepthNode  # noqa: E402
from vlm_depth_ros.ros.messages import byte_array  # noqa: E402
from vlm_depth_ros.ros.node_params import NodeParams  # noqa: E402
from vlm_depth_ros.ros.profile import use_large_segment  # noqa: E402

OUTPUTS = {
    'depth/image_rect': Image,
    'depth/camera_info': CameraInfo,
    'depth/image_color': Image,
    'points': PointCloud2,
}
FRAME_ID = 'camera_optical_frame'


LOADS, CALLED = 'the stand-in loads', 'the stand-in is called'
"""What it prints in a process of its own."""

WARM_UP_CALLS = 2
"""Network calls of `DepthEstimator.warm_up`; the stand-in answers them at once."""


class StandInModel(torch.nn.Module):
    """A network that answers one depth everywhere, after a chosen time, and counts its calls."""

    def __init__(self, depth_m: float = 2.0, latency_s: float = 0.0):
        super().__init__()
        self.config = ModelConfig(
            tower='stand-in', input_hw=(32, 32), camera=TrainingCamera(1.0, 4 / 3)
        )
        self.backbone = torch.nn.Module()
        self.backbone.spec = BackboneSpec(
            'stand-in', True, (3,), (1,), 3, None, (32, 32), False, (0.0,) * 3, (1.0,) * 3
        )
        self.depth_m, self.latency_s = depth_m, latency_s
        self.batch_sizes: list[int] = []
        self.took_s: list[float] = []

    def forward(self, image: torch.Tensor) -> HeadOutput:
        """Wait, then answer."""
        self.batch_sizes.append(len(image))
        start_s = time.monotonic()
        time.sleep(self.latency_s if self.calls > WARM_UP_CALLS else 0)
        self.took_s.append(time.monotonic() - start_s)
        return HeadOutput(torch.full((len(image), 1, 32, 32), self.depth_m))

    @property
    def calls(self) -> int:
        """Network calls so far."""
        return len(self.batch_sizes)


class DepthLimits(NamedTuple):
    """What depth may be, besides NaN and +Inf."""

    low_m: float
    high_m: float
    may_be_neg_inf: bool = False

    @classmethod
    def of(
        cls, model_range_m: tuple[float, float], options: OutputOptions | NodeParams
    ) -> 'DepthLimits':
        """Those of a model's own range under options."""
        low_m, high_m = model_range_m
        return cls(
            max(low_m, options.min_depth_m),
            min(high_m, options.max_depth_m or high_m),
            options.near_is_neg_inf,
        )

    def allow(self, depth_m: np.ndarray) -> np.ndarray:
        """Which values are allowed."""
        inside = (depth_m >= np.float32(self.low_m)) & (depth_m <= np.float32(self.high_m))
        near = (depth_m == -np.inf) & self.may_be_neg_inf
        return inside | near | np.isnan(depth_m) | (depth_m == np.inf)


STAND_IN_LIMITS = DepthLimits.of(StandInModel().config.depth_range_m, OutputOptions())
"""Of a process around a stand-in, with the options that it has by default."""


class DepthWatch:
    """Looks at every value of every depth image that it is given."""

    def __init__(self):
        self.forbidden: list[float] = []
        """Values that no depth image may hold."""
        self.looked_at = 0

    def look(self, message: Image, limits: Iterable[DepthLimits] = (STAND_IN_LIMITS,)) -> None:
        """Take in an image that may be within any of `limits`."""
        depth_m = np.frombuffer(message.data, '<f4')
        allowed = np.logical_or.reduce([one.allow(depth_m) for one in limits])
        self.forbidden += depth_m[~allowed].tolist()
        self.looked_at += 1

    def check(self) -> None:
        """Fail if there was one that is neither NaN, nor an allowed infinity, nor in range."""
        assert not self.forbidden, (
            f'depth was published that is neither unknown nor in range: {self.forbidden[:5]}'
        )


class Factory:
    """Makes estimators around one `StandInModel`; the weights 'broken' fail as a bad file does."""

    def __init__(self, model: StandInModel):
        self.model = model
        self.made: list[tuple[str, RuntimeConfig]] = []

    def __call__(self, weights: str, runtime: RuntimeConfig) -> DepthEstimator:
        """Make one."""
        self.made.append((weights, runtime))
        if weights == 'broken':
            raise WeightsError('broken: is cut off after 10 bytes. Copy it again.')
        torch.set_num_threads(1)
        return DepthEstimator(self.model, RuntimeConfig(device='cpu'), weights)


class Spinner:
    """A node in a context of its own, spun by a thread of its own: a process in small."""

    def __init__(self, create_node: Callable[[rclpy.Context], Node]):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN_ID)
        self.node = create_node(self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._closing.is_set():
            self.executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        """Stop spinning and destroy the node."""
        self._closing.set()
        self.executor.wake()
        self._thread.join(5)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class Graph:
    """The depth node and a tester that plays the camera and listens."""

    def __init__(
        self,
        latency_s: float = 0.0,
        depth_m: float = 2.0,
        active: bool = True,
        cli_args: list[str] | None = None,
        **parameters,
    ):
        """Start both; with `active`, wait until the depth node is.

        Args:
            latency_s: Of the stand-in network.
            depth_m: Its answer.
            active: Start with the parameter `autostart`.
            cli_args: Command line of the depth node, for remapping.
            parameters: Of the depth node.
        """
        use_large_segment()
        self.model = StandInModel(depth_m, latency_s)
        self.factory = Factory(self.model)
        self._limits: defaultdict[float, set[DepthLimits]] = defaultdict(set)
        overrides = [Parameter(name, value=v) for name, v in parameters.items()]
        overrides.append(Parameter('autostart', value=active))
        self._node = Spinner(
            lambda context: DepthNode(
                estimator_factory=self._make_watched,
                context=context,
                parameter_overrides=overrides,
                cli_args=cli_args,
            )
        )
        self._tester = Spinner(lambda context: rclpy.create_node('tester', context=context))
        self.node: DepthNode = self._node.node
        self.tester: Node = self._tester.node
        self.watch = DepthWatch()
        """Of what `listen` reads; leaving the graph fails if it holds a forbidden value."""
        self._publishers: dict = {}
        self._clients: dict = {}
        if active:
            wait_for(lambda: self.state == 'active', 'the node to be active')
        self.calls_before = self.model.calls

    def __enter__(self) -> 'Graph':
        return self

    def __exit__(self, *_: object) -> None:
        self._tester.close()
        self._node.close()
        self.watch.check()

    @property
    def state(self) -> str:
        """Lifecycle state of the depth node."""
        return self.node._state_machine.current_state[1]

    @property
    def calls(self) -> int:
        """Network calls for frames; warming up not counted."""
        return self.model.calls - self.calls_before

    def publish(self, topic: str, message: object, reliable: bool = True) -> None:
        """Publish from the tester; a first image waits until the node subscribes as it shall.

        A camera_info is published until the node has it: it comes on a topic of its own, and an
        image that overtakes it has no points.
        """
        is_new = topic not in self._publishers
        if is_new:
            policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            self._publishers[topic] = self.tester.create_publisher(
                type(message), topic, QoSProfile(depth=1, reliability=policy)
            )
        publisher = self._publishers[topic]
        if is_new:
            self._wait_for_subscription(publisher, 'reliable' if reliable else 'best_effort')
        publisher.publish(message)
        if isinstance(message, CameraInfo):
            self._repeat_until_known(publisher, message)

    def _wait_for_subscription(self, publisher, reliability: str) -> None:
        name = publisher.topic_name
        wait_for(lambda: publisher.get_subscription_count() > 0, f'a subscriber of {name}')
        if self.node.get_parameter('input_reliability').value == 'auto':
            for source in self.node._inputs:
                if source.image_topic == name:
                    # The node follows the publishers four times a second.
                    wait_for(lambda s=source: s.reliability == reliability, 'the right QoS')
        wait_for(lambda: publisher.get_subscription_count() > 0, f'a subscriber of {name}')

    def _repeat_until_known(self, publisher, message: CameraInfo) -> None:
        for source in self.node._inputs:
            if source.info_topic == publisher.topic_name:
                for _ in range(50):
                    if source._newest_info is not None and source._newest_info == message:
                        return
                    time.sleep(0.05)
                    publisher.publish(message)
                raise AssertionError(f'{publisher.topic_name} does not arrive')

    def stop_publishing(self, topic: str) -> None:
        """Withdraw a publisher of the tester."""
        self.tester.destroy_publisher(self._publishers.pop(topic))

    def listen(self, topic: str, kind: type | None = None, reliable: bool = True) -> list:
        """Subscribe; messages are appended to the returned list as they come."""
        kind = kind or OUTPUTS[topic.split('/', 1)[1] if topic not in OUTPUTS else topic]
        got: list = []
        take = got.append
        if topic.endswith('depth/image_rect') and kind is Image:
            take = self._taking(got)
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self.tester.create_subscription(
            kind, topic, take, QoSProfile(depth=5, reliability=reliability)
        )
        wait_for(lambda: self.tester.count_publishers(topic) > 0, f'a publisher of {topic}')
        publishers = [p for o in self.node._outputs for p in o._publishers.values()]
        name = self.tester.resolve_topic_name(topic)
        matched = [p for p in publishers if p.topic_name == name]
        if matched:
            wait_for(lambda: matched[0].get_subscription_count() > 0, f'a match on {topic}')
        return got

    def _taking(self, got: list) -> Callable[[Image], None]:
        """A callback that also looks at every value."""

        def take(message: Image) -> None:
            self.watch.look(message, self._limits_of(message))
            got.append(message)

        return take

    def _make_watched(self, weights: str, runtime: RuntimeConfig) -> DepthEstimator:
        """An estimator that notes which limits hold for the frames it is given."""
        estimator = self.factory(weights, runtime)
        process = estimator.process

        def noting(frames: list[Frame], options: OutputOptions) -> list:
            limits = DepthLimits.of(estimator.config.depth_range_m, options)
            for frame in frames:
                self._limits[frame.stamp_s].add(limits)
            return process(frames, options)

        estimator.process = noting
        return estimator

    def _limits_of(self, message: Image) -> set[DepthLimits]:
        """Those in force when the image of this stamp was answered."""
        noted = self._limits.get(stamp_ns(message) / 1e9)
        if noted:
            return set(noted)
        # Another process answers, or a model that a test put in by hand.
        model = self.node._model
        if model is None:
            return {STAND_IN_LIMITS}
        return {DepthLimits.of(model.estimator.config.depth_range_m, self.node._params)}

    def call(self, kind: type, service: str, request: object, timeout_s: float = 10.0) -> object:
        """Call a service of the depth node."""
        if service not in self._clients:
            self._clients[service] = self.tester.create_client(kind, service)
            assert self._clients[service].wait_for_service(timeout_sec=timeout_s), service
            # The server drops its answer if it has not found the client within 0.1 s.
            time.sleep(0.3)
        future = self._clients[service].call_async(request)
        wait_for(future.done, f'an answer of {service}', timeout_s)
        return future.result()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Return as soon as `condition` holds; fail with `what` was waited for."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f'waited {timeout_s} s for {what}'
        time.sleep(0.005)


def image_message(
    height: int = 48, width: int = 64, stamp_s: float | None = None, frame_id: str = FRAME_ID
) -> Image:
    """An rgb8 image with something on it."""
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.data = byte_array(rgb)
    return stamped(message, stamp_s, frame_id)


def info_message(
    height: int = 48, width: int = 64, stamp_s: float | None = None, frame_id: str = FRAME_ID
) -> CameraInfo:
    """The camera_info of an undistorted camera whose focal length is the image width."""
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob')
    f, cx, cy = float(width), (width - 1) / 2, (height - 1) / 2
    message.d = [0.0] * 5
    message.k = [f, 0.0, cx, 0.0, f, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [f, 0.0, cx, 0.0, 0.0, f, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return stamped(message, stamp_s, frame_id)


def stamped(message: object, stamp_s: float | None = None, frame_id: str = FRAME_ID) -> object:
    """Give a message a header; the time of now by default."""
    stamp_ns = time.time_ns() if stamp_s is None else round(stamp_s * 1e9)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    message.header.frame_id = frame_id
    return message


def stamp_ns(message: object) -> int:
    """Stamp of a message."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def main() -> int:
    """Run the depth node around a stand-in: LATENCY_S LOADING_S[,LATER_S] [--ros-args ...].

    Its first model takes LOADING_S to load, others LATER_S if that is given. It prints a line when
    it begins to load, and one at each call of the network.
    """
    from vlm_depth_ros.ros.process import run

    latency_s, loading_s = float(sys.argv[1]), [float(s) for s in sys.argv[2].split(',')]
    model = StandInModel(2.0, latency_s)
    model.register_forward_pre_hook(lambda *_: print(CALLED, flush=True))
    factory = Factory(model)

    def load(weights: str, runtime: RuntimeConfig) -> DepthEstimator:
        print(LOADS, flush=True)
        end_s = time.monotonic() + (loading_s.pop(0) if loading_s[1:] else loading_s[0])
        while time.monotonic() < end_s:  # Many short steps, as reading weights has.
            time.sleep(0.01)
        return factory(weights, runtime)

    args = sys.argv[:1] + sys.argv[3:]
    return run(
        lambda stop: DepthNode(estimator_factory=load, interruptible=stop.interruptible), args
    )


if __name__ == '__main__':
    sys.exit(main())
