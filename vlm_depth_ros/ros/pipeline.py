"""From the newest images of all cameras to published depth, in the worker's thread."""

from collections.abc import Callable, Sequence
import math
import time
from typing import Any, TYPE_CHECKING

from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.errors import DeviceLostError, InputError
from vlm_depth_ros.core.frustum import stvl_frustum
from vlm_depth_ros.core.texts import quoted
from vlm_depth_ros.ros.inputs import CameraInput
from vlm_depth_ros.ros.node_params import NodeParams
from vlm_depth_ros.ros.outputs import CameraOutput
from vlm_depth_ros.ros.surroundings import Surroundings
from vlm_depth_ros.ros.worker import Arrival, Statistics

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator, Frame, FrameOutput

REPEAT_S = 5.0
"""The same is not said again sooner."""
MOST_FRAME_IDS = 8
"""Of one camera that are looked at; one that changes all the time is not worth more words."""


class DepthPipeline:
    """One estimator for the frames of all cameras, the same one from decoding to publishing.

    Errors of a frame are counted and logged at most every `REPEAT_S`; the next frame comes
    as if nothing had happened.
    """

    def __init__(
        self,
        estimator: Callable[[], 'DepthEstimator'],
        inputs: Sequence[CameraInput],
        outputs: Sequence[CameraOutput],
        surroundings: Surroundings,
        statistics: Sequence[Statistics],
        params: Callable[[], NodeParams],
        logger: Any,
    ):
        """Keep the parts; the sequences have one entry for each camera.

        Args:
            estimator: Gives the network of the moment.
            inputs: Decode images and know cameras.
            outputs: Know who listens, and publish.
            surroundings: Knows poses and ranges.
            statistics: Counted up here.
            params: Gives the parameters of the moment.
            logger: The node's.
        """
        # They need torch, which may be missing.
        from vlm_depth_ros.core.estimator import Frame
        from vlm_depth_ros.core.track import CameraTrack

        self._frame_type = Frame
        self._tracks = [CameraTrack(name or 'camera') for name in params().cameras]
        self._cloud_s = [-math.inf] * len(inputs)
        self._surroundings = surroundings
        self._newest_estimator = estimator
        self._estimator = estimator()
        self._inputs = inputs
        self._outputs = outputs
        self._statistics = statistics
        self._params = params
        self._logger = logger
        self._said_s: dict[tuple[int, str], float] = {}
        self._known_cameras: list[CameraModel | None] = [None] * len(inputs)
        self._known_frames: list[set[str]] = [set() for _ in inputs]

    def __call__(self, taken: dict[int, Arrival], is_stopping: Callable[[], bool]) -> None:
        """Run the network once for all frames that somebody wants, and publish.

        Args:
            taken: Newest frame by camera index.
            is_stopping: True from it after the network ran withholds the results.
        """
        params, self._estimator = self._params(), self._newest_estimator()
        frames = {}
        for index, arrival in taken.items():
            wants = self._possible(index, self._due(index, arrival, params), params)
            if not wants:
                self._statistics[index].unwanted += 1
                continue
            try:
                frames[index] = self._frame(index, arrival.message, wants, params)
            except Exception as err:
                self._fail(index, err)
        for index, output in self._estimate(frames, params):
            if not is_stopping():
                self._publish(index, taken[index], output, params.base_frame)

    def _due(self, index: int, arrival: Arrival, params: NodeParams) -> frozenset[str]:
        """Return what is subscribed to, clouds at their own rate."""
        wants = self._outputs[index].wants(params.says_pose)
        if 'points' in wants and params.cloud_rate_hz:
            # A frame that comes a little early counts: the next one would be a whole period late.
            if (arrival.received_s - self._cloud_s[index]) * params.cloud_rate_hz < 0.9:
                return wants - {'points'}
            self._cloud_s[index] = arrival.received_s
        return wants

    def _possible(
        self, index: int, wants: frozenset[str], params: NodeParams
    ) -> frozenset[str]:
        """Return what the model can answer; who reads the rest in vain is told why."""
        name = self._estimator.name
        if 'embedding' in wants and not self._estimator.can_embed:
            wants -= {'embedding'}
            self._warn(
                index,
                'embedding',
                f'No embedding: the tower of {name} has no trained projection. Use weights on a '
                'CLIP, SigLIP or MobileCLIP tower. Depth goes on.',
            )
        if not self._estimator.has_confidence and (
            'confidence' in wants or params.filter_min_confidence
        ):
            wants -= {'confidence'}
            self._warn(
                index,
                'confidence',
                f'No confidence: the head of {name} gives none, so filter_min_confidence removes '
                'nothing. Use weights whose head was trained with one (option confidence: true). '
                'Depth goes on.',
            )
        return wants

    def _look_at_frame_id(self, index: int, frame_id: str) -> None:
        known = self._known_frames[index]
        if frame_id in known or len(known) == MOST_FRAME_IDS:
            return
        known.add(frame_id)
        if 'optical' not in frame_id:
            text = (
                f'The images have frame_id {quoted(frame_id)}: expected the optical frame of the '
                'camera (z ahead, REP-103), usually named ..._optical_frame. Points will lie '
                'wrongly in the robot unless that frame is one.'
            )
            self._logger.warning(self._named(index, text))

    def _frame(
        self, index: int, message: Any, wants: frozenset[str], params: NodeParams
    ) -> 'Frame':
        source, rectify = self._inputs[index], params.rectify
        self._look_at_frame_id(index, message.header.frame_id)
        rgb = source.to_rgb(message)
        camera = self._camera(index, message.header.frame_id, rgb.shape[:2])
        # image_proc publishes one camera_info, with D of the lens, for image_raw and image_rect.
        undistort = rectify == 'on' or (rectify == 'auto' and not source.is_rectified_by_name)
        return self._frame_type(
            rgb=rgb,
            camera=camera,
            rectify=undistort,
            wants=wants,
            stamp_s=_stamp_ns(message) / 1e9,
            track=self._tracks[index],
            **self._beside(index, message, wants, params),
        )

    def _beside(
        self, index: int, message: Any, wants: frozenset[str], params: NodeParams
    ) -> dict[str, Any]:
        """Return what the options need beside the image, as fields of a frame."""
        found, about = {}, (index, message.header, params)
        try:
            if params.needs_pose(wants):
                found['base_from_optical'] = self._surroundings.base_from_optical(*about)
            if params.scale_source == 'ranges':
                found['range_points'] = self._surroundings.range_points(*about)
        except InputError as err:
            found['silence'] = str(err)
        return found

    def _camera(self, index: int, frame_id: str, image_hw: tuple[int, int]) -> CameraModel | None:
        """Return the camera of a frame, or None: then depth flows and points wait."""
        statistics = self._statistics[index]
        try:
            camera = self._inputs[index].camera_for(frame_id, image_hw)
        except InputError as err:
            statistics.camera_trouble = str(err)
            self._warn(index, 'camera', f'Points and depth/camera_info wait: {err}')
            return None
        statistics.camera_trouble = ''
        self._tell_frustum(index, camera)
        return camera

    def _tell_frustum(self, index: int, camera: CameraModel) -> None:
        """Say what a voxel layer that clears by a frustum has to know, once unless it changes."""
        if self._known_cameras[index] is camera or not self._may_say(index, 'frustum'):
            return
        self._known_cameras[index] = camera
        seen = stvl_frustum(camera.intrinsics(rectified=True))
        text = (
            f'For STVL: vertical_fov_angle {seen.vertical_fov_angle:.3f}, horizontal_fov_angle '
            f'{seen.horizontal_fov_angle:.3f}, max_z at least {seen.reach:.2f} times '
            'obstacle_range.'
        )
        self._logger.info(self._named(index, text))

    def _estimate(
        self, frames: dict[int, 'Frame'], params: NodeParams
    ) -> list[tuple[int, 'FrameOutput']]:
        """Run one call for all; if it fails, one for each, so that a bad frame stands alone."""
        if not frames:
            return []
        was_lost = bool(self._estimator.guard.loss)
        try:
            outputs = self._estimator.process(list(frames.values()), params.output_options)
            return list(zip(frames, outputs))
        except DeviceLostError as err:  # One by one they would fail just so.
            for index in frames:
                self._statistics[index].count_failed(err)
            if not was_lost:
                self._logger.error(f'No depth from now on: {err}')
            return []
        except Exception as err:
            if len(frames) == 1:
                self._fail(next(iter(frames)), err)
                return []
        return [pair for i, frame in frames.items() for pair in self._estimate({i: frame}, params)]

    def _publish(
        self, index: int, arrival: Arrival, output: 'FrameOutput', base_frame: str
    ) -> None:
        statistics = self._statistics[index]
        statistics.scale = self._tracks[index].scale.state
        statistics.valid_share = output.valid_share
        for name, note in output.notes.items():
            self._warn(index, name, note)
        if output.valid_share == 0:
            self._warn(index, 'empty', 'No depth in the whole image: each pixel was removed by a '
                       'filter, lies outside the range, or the network answers no number.')
        header = arrival.message.header
        try:
            self._outputs[index].publish(output, header, base_frame)
        except Exception as err:
            self._fail(index, err)
            return
        statistics.published += 1
        statistics.last_latency_ms = (time.monotonic() - arrival.received_s) * 1e3
        stamp_ns = _stamp_ns(arrival.message)
        if stamp_ns < statistics.last_stamp_ns:
            statistics.time_jumps += 1
            back_s = (statistics.last_stamp_ns - stamp_ns) / 1e9
            self._warn(index, 'time', f'Stamps went back by {back_s:.3f} s: a bag that loops?')
        statistics.last_stamp_ns = stamp_ns

    def _fail(self, index: int, err: Exception) -> None:
        statistics = self._statistics[index]
        statistics.count_failed(err)
        self._warn(
            index, 'frame', f'Frame dropped ({statistics.failed} so far): {statistics.last_error}'
        )

    def _warn(self, index: int, kind: str, text: str) -> None:
        if self._may_say(index, kind):
            self._logger.warning(self._named(index, text))

    def _may_say(self, index: int, kind: str) -> bool:
        """Whether it was not said lately; then it counts as said now."""
        now_s = time.monotonic()
        if now_s - self._said_s.get((index, kind), -math.inf) < REPEAT_S:
            return False
        self._said_s[index, kind] = now_s
        return True

    def _named(self, index: int, text: str) -> str:
        name = self._params().cameras[index]
        return f'{name}: {text}' if name else text


def _stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
