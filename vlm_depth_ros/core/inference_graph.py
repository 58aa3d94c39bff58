"""A network as one graph for inference: depth and confidence of an image, nothing else.

`torch.export` leaves out what only training reads (auxiliary heads, dropout), and a head may have
another writing with fewer operations (`INFERENCE_HEADS`). The batch, and the size of the input
where the tower takes any, stay open.
"""

from collections.abc import Iterator
import copy
from itertools import pairwise
import logging

import torch
from torch import nn
from torch.export import Dim, export, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval
from vlm_depth_ros.core.errors import DependencyError
from vlm_depth_ros.core.heads.space_clip import SpaceClipHead
from vlm_depth_ros.core.heads.space_clip_inference import SpaceClipInference

IMAGE, DEPTH, CONFIDENCE = 'image', 'depth_m', 'confidence'
"""Names of the input and of the outputs; a head without a confidence leaves the last one out."""

INFERENCE_HEADS: dict[type[nn.Module], type[nn.Module]] = {SpaceClipHead: SpaceClipInference}
"""What answers as a head does in evaluation mode, built from it; other heads go as they are."""


class DepthOnly(nn.Module):
    """The network with plain tensors as its answer."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, h, w) to (B, 1, h', w') metres, and confidence where the head has one."""
        found = self.model(image)
        answers = found.depth_m, found.confidence
        return tuple(answer for answer in answers if answer is not None)


def for_inference(model: nn.Module) -> nn.Module:
    """What answers as `model` does, by fewer operations where it allows; else itself.

    BatchNorm is folded into the convolution before it, and the head may have another writing. All
    other parts are those of `model`, which stays as it is; weights that are loaded into `model`
    later do not reach what was folded.
    """
    rewriting = INFERENCE_HEADS.get(type(getattr(model, 'head', None)))
    if rewriting is None and not any(_foldable(model)):
        return model
    shared = [*model.parameters(), *model.buffers(), model.config]
    shared += [part for part in model.modules() if part is not model and not any(_foldable(part))]
    lean = copy.deepcopy(model, {id(part): part for part in shared})
    if rewriting is not None:
        lean.head = rewriting(model.head)
    for parent, conv, norm in list(_foldable(lean)):
        first, second = getattr(parent, conv), getattr(parent, norm)
        setattr(parent, conv, fuse_conv_bn_eval(first, second).requires_grad_(False))
        # timm's BatchNorm has an activation inside.
        setattr(parent, norm, getattr(second, 'act', nn.Identity()))
    return lean


def _foldable(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """What has a convolution and, as its next part, a BatchNorm; their names in it.

    That the one gets what the other answers is so in open_clip's towers and our heads; whoever
    runs the result compares it.
    """
    for parent in module.modules():
        for (conv, first), (norm, second) in pairwise(parent.named_children()):
            if type(first) is nn.Conv2d and isinstance(second, nn.BatchNorm2d):
                yield parent, conv, norm


def exported(model: nn.Module) -> ExportedProgram:
    """The graph of `for_inference` of a `DepthModel`, in fp32, on the device where it is.

    Whatever `torch.export` raises where it cannot follow a network goes through.
    """
    spec = model.backbone.spec
    open_sizes = {0: Dim('batch', min=1)}
    if spec.is_hierarchical:
        open_sizes[2] = spec.size_multiple * Dim('rows', min=1)
        open_sizes[3] = spec.size_multiple * Dim('columns', min=1)
    device = next(model.parameters()).device
    network = DepthOnly(for_inference(model))
    image = torch.zeros(2, 3, *spec.input_hw, device=device)  # a batch of 1 would be a constant
    with torch.no_grad():
        return export(network, (image,), dynamic_shapes={IMAGE: open_sizes})


def onnx_program(program: ExportedProgram) -> 'torch.onnx.ONNXProgram':
    """The same graph in ONNX, still in memory.

    Raises:
        DependencyError: If onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401  torch.onnx would say it less clearly
        import onnxscript  # noqa: F401
    except ImportError as err:
        raise DependencyError(
            f'{err}: ONNX is written by onnx and onnxscript. Install them: '
            "pip install 'vlm_depth_ros[engines]'."
        ) from err
    for library in ('onnxscript', 'onnx_ir'):  # which tell of every node that they touch
        logging.getLogger(library).setLevel(logging.WARNING)
    outputs = [DEPTH, CONFIDENCE][: len(program.graph_signature.user_outputs)]
    return torch.onnx.export(
        program, dynamo=True, input_names=[IMAGE], output_names=outputs, verbose=False
    )
