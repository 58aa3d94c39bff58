"""A feature teacher: an ONNX network whose maps a tower of our own learns to predict.

It is used while a tower of our own is trained, and never shipped.
"""

from pathlib import Path

import torch
from torch import nn
from vlm_depth_ros.core.errors import DependencyError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.tools.losses import correlation


class FeatureTeacher(nn.Module):
    """Frozen teacher maps and trainable 1x1 projections from the student's maps to them.

    Args:
        path: ONNX file with input ``image`` (RGB as x / 127.5 - 1) and one output per stride.
        spec: The student tower.
        strides: Which maps to match.

    Raises:
        DependencyError: If onnxruntime is not installed.
        InputError: If the file is missing or has no map of a stride.
    """

    def __init__(self, path: Path, spec: BackboneSpec, strides: tuple[int, ...] = (8, 16, 32)):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as err:
            raise DependencyError(
                'the feature teacher needs onnxruntime: pip install onnxruntime'
            ) from err
        if not path.is_file():
            raise InputError(f'teacher {path}: no such file. Set teacher: null to train without.')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, ['CPUExecutionProvider']
            )
        except Exception as err:  # onnxruntime has a class of its own for each failure
            raise InputError(f'teacher {path}: not a readable ONNX file ({err}).') from err
        probe = self._run(torch.zeros(1, 3, 64, 64))
        found = {64 // m.shape[-1]: name for name, m in probe.items() if m.ndim == 4}
        missing = [s for s in strides if s not in found]
        if missing:
            raise InputError(f'teacher {path}: no map of stride {missing}, only {sorted(found)}.')
        self._names = [found[s] for s in strides]
        last = {stride: k for k, stride in enumerate(spec.strides)}
        if not last.keys() >= set(strides):
            raise InputError(
                f'teacher {path}: tower {spec.tower!r} has strides {sorted(last)}, expected '
                f'{strides} among them.'
            )
        self.layers = tuple(last[s] for s in strides)
        self.projections = nn.ModuleList(
            nn.Conv2d(spec.widths[k], probe[name].shape[1], 1)
            for k, name in zip(self.layers, self._names)
        )

    def forward(self, rgb: torch.Tensor, features: Features) -> torch.Tensor:
        """Mean of 1 - correlation over the matched maps; `rgb` is (B, 3, h, w) in 0..1.

        The teacher itself runs on the CPU.
        """
        truth = self._run(rgb * 2 - 1, self._names)
        terms = [
            correlation(project(features.maps[k].float()), truth[name].to(rgb.device))
            for k, name, project in zip(self.layers, self._names, self.projections)
        ]
        return sum(terms) / len(terms)

    def _run(self, image: torch.Tensor, names: list[str] | None = None) -> dict:
        names = names or [o.name for o in self._session.get_outputs()]
        found = self._session.run(names, {'image': image.cpu().contiguous().numpy()})
        return {n: torch.from_numpy(m) for n, m in zip(names, found)}
