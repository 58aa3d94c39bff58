"""Eager in half precision, checked against fp32 before it may answer."""

import logging

import torch
from torch import nn
from vlm_depth_ros.core.device_failures import failure_of
from vlm_depth_ros.core.devices import DTYPES
from vlm_depth_ros.core.engines import BOUNDS, difference_of
from vlm_depth_ros.core.errors import reason_of, VlmDepthError
from vlm_depth_ros.core.exact_fp32 import exact_fp32

log = logging.getLogger(__name__)


def checked_precision(
    model: nn.Module, precision: str, device: torch.device, name: str
) -> str:
    """The precision that eager is to run in: `precision`, or fp32 with one warning.

    Half precision has to answer one fixed image within `BOUNDS` of fp32: fp16 ends at 65504, and
    not every head and GPU gets along with either kind.

    Args:
        model: On `device`, in evaluation mode, in fp32.
        precision: Key of `DTYPES`.
        device: Where it runs.
        name: What to call it.

    Raises:
        WeightsError: If it answers nothing finite in fp32.
        RuntimeError: If the device fails, in torch's words; `DeviceGuard` puts them into ours.
    """
    if precision == 'fp32':
        return precision
    try:
        difference = _difference(model, precision, device)
    except Exception as err:  # also an operation that the device lacks in this precision
        if isinstance(err, VlmDepthError) or failure_of(err, device) is not None:
            raise
        trouble = f'cannot run in {precision} ({reason_of(err)})'
    else:
        if difference <= BOUNDS[precision]:
            return precision
        trouble = (
            f'in {precision} differs from fp32 by {difference:.2g} of the depth, more than '
            f'{BOUNDS[precision]:g}'
        )
    log.warning('%s %s: it runs in fp32. Set precision: fp32 to say so.', name, trouble)
    return 'fp32'


def _difference(model: nn.Module, precision: str, device: torch.device) -> float:
    noise = torch.Generator().manual_seed(0)
    image = torch.randn((1, 3, *model.backbone.spec.input_hw), generator=noise).to(device)
    with torch.inference_mode(), exact_fp32():
        expected = model(image)
        with torch.autocast(device.type, DTYPES[precision]):
            found = model(image)
        return difference_of(expected, found, model.config.depth_range_m[0])
