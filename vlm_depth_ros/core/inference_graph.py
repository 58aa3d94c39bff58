"""A network as one graph for inference: depth and confidence of an image, nothing else.

`torch.export` leaves out what only training reads (auxiliary heads, dropout); the batch, and the
size of the input where the tower takes any, stay open.
"""

import logging

import torch
from torch import nn
from torch.export import Dim, export, ExportedProgram
from vlm_depth_ros.core.errors import DependencyError

IMAGE, DEPTH, CONFIDENCE = 'image', 'depth_m', 'confidence'
"""Names of the input and of the outputs; a head without a confidence leaves the last one out."""


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


def exported(model: nn.Module) -> ExportedProgram:
    """The graph of a `DepthModel` in evaluation mode, in fp32, on the device where it is.

    Whatever `torch.export` raises where it cannot follow a network goes through.
    """
    spec = model.backbone.spec
    open_sizes = {0: Dim('batch', min=1)}
    if spec.is_hierarchical:
        open_sizes[2] = spec.size_multiple * Dim('rows', min=1)
        open_sizes[3] = spec.size_multiple * Dim('columns', min=1)
    device = next(model.parameters()).device
    image = torch.zeros(2, 3, *spec.input_hw, device=device)  # a batch of 1 would be a constant
    with torch.no_grad():
        return export(DepthOnly(model), (image,), dynamic_shapes={IMAGE: open_sizes})


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
