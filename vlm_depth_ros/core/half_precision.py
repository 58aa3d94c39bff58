"""Eager in half precision, checked against fp32 before it may answer."""

import logging

import torch
from torch import nn
from vlm_depth_ros.core.agreement import difference_on, fixed_images, too_far
from vlm_depth_ros.core.device_failures import failure_of
from vlm_depth_ros.core.errors import reason_of, VlmDepthError

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
        image = next(fixed_images(model.backbone.spec, device))
        trouble = too_far(difference_on(image, model, model, precision), precision)
    except Exception as err:  # also an operation that the device lacks in this precision
        if isinstance(err, VlmDepthError) or failure_of(err, device) is not None:
            raise
        trouble = f'cannot run in {precision} ({reason_of(err)})'
    if not trouble:
        return precision
    log.warning('%s %s: it runs in fp32. Set precision: fp32 to say so.', name, trouble)
    return 'fp32'
