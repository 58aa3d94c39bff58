"""One of our networks, alone and inside the estimator, in every engine and precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
import statistics

import torch
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.canonical import seen_by
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.estimator import DepthEstimator, Frame, FrameOutput
from vlm_depth_ros.core.exported import ExportedModel
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.options import OutputOptions
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.bench_engines import call_of, Choice, Ready
from vlm_depth_ros.tools.bench_floor import Work, work_of

ASSUMED_FOV_DEG = 69.0
"""Of an image whose camera is not known."""
STAGES = ('preprocess', 'network', 'refine and pack')


@dataclass(frozen=True)
class Stages:
    """Median times of the parts of one estimator."""

    milliseconds: dict[str, float]
    """By `STAGES`."""
    network_calls: float
    """Of one frame, or one batch."""

    @property
    def other_share(self) -> float:
        """How much of the whole is not the network."""
        return 1 - self.milliseconds['network'] / sum(self.milliseconds.values())


class Ours:
    """A network of ours, ready in several ways; all of them share its weights.

    Args:
        name: Of the rows.
        model: On any device, in evaluation mode; it moves to `device`. Or an exported file.
        choices: How to run it.
        shot: The camera image that the estimators get.
        device: Where.

    Raises:
        ConfigError: If none of `choices` can run it.
        DependencyError: If the library of an engine is missing.
        WeightsError: If an exported file cannot be run.
    """

    def __init__(
        self,
        name: str,
        model: DepthModel | Path,
        choices: Sequence[Choice],
        shot: SourceFrame,
        device: torch.device,
    ):
        self.name, self.device = name, device
        self.is_exported = isinstance(model, Path)
        self.ready: dict[Choice, Ready] = {}
        """What the estimators run."""
        self.estimators: dict[Choice, DepthEstimator] = {}
        for choice in choices:
            runtime = RuntimeConfig(str(device), choice.precision, engine=choice.engine)
            network = ExportedModel(model, runtime) if self.is_exported else model
            estimator = DepthEstimator(network.requires_grad_(False), runtime, name)
            way = estimator.ways.at_hand
            engine = way.engine if choice.engine != 'auto' else 'auto'
            if (engine, estimator.precision) == (choice.engine, choice.precision):
                self.ready[choice] = Ready(way.network)
                estimator.ways.at_hand = replace(way, network=self.ready[choice])
                self.estimators[choice] = estimator
        self.failed = {
            choice: 'cannot run it, or answers something else than eager fp32'
            for choice in choices if choice not in self.ready
        }  # fmt: skip
        if not self.ready:
            raise ConfigError(f'{name}: runs in none of {", ".join(map(str, choices))}. Choose '
                              'other engines.')  # fmt: skip
        self.model = next(iter(self.estimators.values())).model
        self.frame = frame_of(shot)
        spec = self.model.backbone.spec
        seen = seen_by(self.model.config, self.frame.intrinsics, spec.size_multiple)
        self.input_hw: tuple[int, int] = tuple(seen.input_hw)
        """What the estimator makes of the image."""

    def image(self, batch: int = 1, hw: tuple[int, int] | None = None) -> torch.Tensor:
        """A prepared tensor of noise (B, 3, h, w); by default of the size that is run."""
        noise = torch.Generator().manual_seed(0)
        image = torch.randn(batch, 3, *(hw or self.input_hw), generator=noise)
        return image.to(self.device).contiguous(memory_format=torch.channels_last)

    def network_call(
        self, choice: Choice, batch: int = 1, hw: tuple[int, int] | None = None
    ) -> Callable:
        """A call of the network alone."""
        return call_of(self.ready[choice], self.image(batch, hw), choice.precision)

    def estimator_call(self, choice: Choice, cameras: int = 1) -> Callable[[], list[FrameOutput]]:
        """A call of the estimator: camera images in, depth and clouds out, packed."""
        estimator, frames, options = (
            self.estimators[choice], [self.frame] * cameras, OutputOptions()
        )  # fmt: skip
        return lambda: estimator.process(frames, options)

    def work(self, batch: int = 1, hw: tuple[int, int] | None = None) -> Work | None:
        """What the network has to do; None of an exported file, which PyTorch cannot count."""
        if self.is_exported:
            return None
        image = self.image(batch, hw)
        return work_of(lambda: self.model(image))

    def message_bytes(self) -> int:
        """Of one camera's image, depth and cloud, as the estimator reads and packs them."""
        output = self.estimator_call(next(iter(self.estimators)))()[0]
        packed = (output.depth, output.points)
        return self.frame.rgb.nbytes + sum(p.data.nbytes for p in packed if p is not None)

    def stages(self, choice: Choice, runs: int, clock: Callable[[], float]) -> Stages:
        """Time the estimator in parts.

        Args:
            choice: How to run it.
            runs: How often, after a first run that is not counted.
            clock: In seconds.
        """
        ready, call = self.ready[choice], self.estimator_call(choice)
        parts, num_calls = [], []
        call()
        ready.clock = clock
        try:
            for _ in range(runs):
                ready.marks.clear()
                start_s = clock()
                call()
                end_s = clock()
                marks = ready.marks
                inside_s = sum(b - a for a, b in zip(marks[::2], marks[1::2]))
                before_s = marks[0] - start_s
                parts.append((before_s, inside_s, end_s - start_s - before_s - inside_s))
                num_calls.append(len(marks) // 2)
        finally:
            ready.clock = None
        medians = (statistics.median(column) * 1e3 for column in zip(*parts))
        return Stages(dict(zip(STAGES, medians)), statistics.mean(num_calls))


def frame_of(shot: SourceFrame) -> Frame:
    """A camera image as the node hands it to the estimator, depth and cloud wanted."""
    hw = shot.rgb.shape[:2]
    intrinsics = shot.intrinsics or CameraIntrinsics.from_fov(ASSUMED_FOV_DEG, hw)
    return Frame(
        shot.rgb, CameraModel.from_intrinsics(intrinsics), wants=frozenset({'depth', 'points'})
    )
