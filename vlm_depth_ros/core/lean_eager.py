"""Eager with less to do: the network for inference in place of the one that is trained."""

from dataclasses import replace
import logging
from typing import TYPE_CHECKING

from vlm_depth_ros.core.agreement import difference_on, fixed_images, too_far
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.inference_graph import for_inference

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator

log = logging.getLogger(__name__)


def run_lean(estimator: 'DepthEstimator') -> None:
    """Let an estimator that runs in eager on a CPU run `for_inference` of its network.

    Its depth is no longer that of `from_features` and of others on the same tower to the bit, so
    only a program that shares nothing and looks for speed, as the node, asks for it. It is
    compared with the network itself first; where it says something else, one warning says so, and
    the network goes on as it is.

    Args:
        estimator: Weights that are changed inside its `model` later do not reach what runs.
    """
    way, model, precision = estimator.ways.at_hand, estimator.model, estimator.precision
    if way.network is not model or estimator.device.type != 'cpu':
        return
    lean = for_inference(model)
    if lean is model:
        return
    image = next(fixed_images(model.backbone.spec, estimator.device))
    try:
        trouble = too_far(difference_on(image, model, lean, precision), precision)
    except WeightsError:  # Whoever reads the depth sees that it is none.
        return
    if trouble:
        log.warning('%s with BatchNorm folded %s: it runs as it is. Set engine: eager to say so.',
                    estimator.name, trouble)  # fmt: skip
        return
    estimator.ways.at_hand = replace(way, network=lean)
