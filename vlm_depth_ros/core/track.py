"""What is remembered of one camera from frame to frame: the scale of its depth, and its depth."""

from collections.abc import Callable

import numpy as np
import torch
from vlm_depth_ros.core.options import OutputOptions, TemporalOptions
from vlm_depth_ros.core.scale import Measurement, ScaleEstimate, ScaleOptions
from vlm_depth_ros.core.temporal import TemporalFilter


class CameraTrack:
    """The memory of one camera, in the hands of whoever sends its frames.

    Args:
        name: What to call the camera in a warning.
    """

    def __init__(self, name: str = ''):
        self.scale = ScaleEstimate(ScaleOptions(), name)
        """Read its `state` from any thread."""
        self.temporal = TemporalFilter(TemporalOptions())

    def follow(self, options: OutputOptions) -> None:
        """Take over options that may have changed since the frame before."""
        self.scale.change(options.scale)
        self.temporal.options = options.temporal

    def in_metres(
        self,
        depth: torch.Tensor,
        measure: Callable[[np.ndarray], Measurement],
        stamp_s: float,
    ) -> torch.Tensor:
        """Depth (1, 1, h, w) times the scale, which is measured on it first where it has a source.

        Args:
            depth: As the network says it; the very same tensor comes back where the factor is 1.
            measure: Says what (h, w) depth has to be multiplied by; not asked without a source.
            stamp_s: When the image was taken.
        """
        if self.scale.wants_measurements:
            self.scale.update(measure(depth[0, 0].float().cpu().numpy()), stamp_s)
        return self.scale.apply(depth)
