"""What teaches a tower of our own while it trains, and is never shipped.

An ONNX network gives maps that the tower learns to predict, and the *guide*, a depth head that was
trained on these maps beforehand, gives a depth for every view, also where nothing was measured.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn
from vlm_depth_ros.core.errors import DependencyError, InputError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.tools.losses import correlation

PROBE = 64
"""Side of the image that finds out the strides."""


class TeacherTower(nn.Module):
    """An ONNX network that answers as a frozen `Backbone` does; it runs on the CPU.

    Args:
        path: File with the input ``image`` (RGB as x / 127.5 - 1) and one output per stride.

    Raises:
        DependencyError: If onnxruntime is not installed.
        InputError: If the file is missing or not readable.
    """

    def __init__(self, path: Path):
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
        self.path = path
        outputs = [output.name for output in self._session.get_outputs()]
        found = zip(outputs, self._run(torch.zeros(1, 3, PROBE, PROBE), outputs))
        maps = {PROBE // m.shape[-1]: (name, m.shape[1]) for name, m in found if m.ndim == 4}
        strides = tuple(sorted(maps))
        self._names, widths = zip(*(maps[stride] for stride in strides))
        self.spec = BackboneSpec(
            tower=path.stem, is_hierarchical=True, widths=widths, strides=strides,
            pooled_width=widths[-1], embedding_width=None, input_hw=(PROBE, PROBE),
            has_class_token=False, mean=(0.5,) * 3, std=(0.5,) * 3,
        )  # fmt: skip

    def forward(self, image: torch.Tensor, layers, want_embedding: bool = False) -> Features:
        """Maps of a normalised (B, 3, h, w) image; ``pooled`` is the mean of the deepest."""
        layers = sorted({*layers, self.spec.num_layers})
        found = self._run(image, [self._names[k] for k in layers])
        maps = {k: m.to(image.device) for k, m in zip(layers, found)}
        return Features(maps, maps[self.spec.num_layers].mean((2, 3)))

    def state_sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def _run(self, image: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
        found = self._session.run(names, {'image': image.float().cpu().contiguous().numpy()})
        return [torch.from_numpy(m) for m in found]


class FeatureTeacher(nn.Module):
    """Trainable 1x1 projections from a student's maps to those of the teacher.

    Args:
        teacher: What the teacher is.
        student: What the student is.
        strides: Which maps to match.

    Raises:
        InputError: If one of the two has no map of a stride.
    """

    def __init__(
        self, teacher: BackboneSpec, student: BackboneSpec, strides: tuple[int, ...] = (8, 16, 32)
    ):
        super().__init__()
        last = []
        for who, spec in (('teacher', teacher), ('tower', student)):
            found = {stride: k for k, stride in enumerate(spec.strides)}
            if not found.keys() >= set(strides):
                raise InputError(
                    f'{who} {spec.tower!r} has strides {sorted(found)}, expected {strides} among '
                    'them: the tower cannot learn its maps.'
                )
            last.append(tuple(found[s] for s in strides))
        self.teacher_layers, self.layers = last
        self.projections = nn.ModuleList(
            nn.Conv2d(student.widths[k], teacher.widths[t], 1)
            for t, k in zip(self.teacher_layers, self.layers)
        )

    def forward(self, seen: Features, features: Features) -> torch.Tensor:
        """Mean of 1 - correlation over the matched maps of teacher and student."""
        terms = [
            correlation(project(features.maps[k].float()), seen.maps[t])
            for t, k, project in zip(self.teacher_layers, self.layers, self.projections)
        ]
        return sum(terms) / len(terms)
