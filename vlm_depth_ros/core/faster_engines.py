"""Engines that may be faster than eager: prepared in one process, loaded in another.

To convert a network takes many seconds of Python, in which the same process would hardly answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path

import torch
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.engines import CONVERTED, convertible, Engine, engine_of
from vlm_depth_ros.core.errors import WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.fingerprint import file_sha256
from vlm_depth_ros.core.graph_cache import slot_of
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import find_weights, load_model


@dataclass(frozen=True)
class Prepared:
    """A converted network in the cache."""

    weights_sha256: str
    """Of the file that it was made from."""
    graph: str
    """Path of the ONNX file."""
    engines: tuple[str, ...]
    """What runs it and answers as eager fp32 does."""


def prepare(weights: str, precision: str, tower_weights: str) -> Prepared:
    """Convert a network, unless the cache has it, and check it in every engine that is here.

    Args:
        weights: Shipped name or .safetensors file.
        precision: That the engines are to run in.
        tower_weights: As in `RuntimeConfig`.

    Raises:
        WeightsError: If the weights are no longer there, or the cache cannot hold the result.
    """
    path = find_weights(weights)
    model = load_model(path, tower_weights=tower_weights).requires_grad_(False)
    sha256 = file_sha256(path)  # After it was read: if it was replaced meanwhile, it fits nobody.
    slot = slot_of(model)
    slot.parent.mkdir(parents=True, exist_ok=True)
    if not (slot.is_file() or os.access(slot.parent, os.W_OK)):
        raise WeightsError(f'{slot.parent} cannot be written, so no engine can be kept there.')
    ready = []
    for name in convertible(precision):
        runtime = RuntimeConfig('cpu', precision, engine=name)
        if engine_of(model, runtime, precision, torch.device('cpu')) is not model:
            ready.append(name)
    if ready and not slot.is_file():
        raise WeightsError(f'{weights}: the converted network could not be kept.')
    return Prepared(sha256, str(slot), tuple(ready))


def load(
    prepared: Prepared, estimator: DepthEstimator
) -> dict[str, Callable[..., HeadOutput]]:
    """What `prepare` found, for `Ways.try_engines` of the estimator; on this thread's threads.

    Raises:
        WeightsError: If it was made from other weights than those of the estimator.
    """
    if prepared.weights_sha256 != estimator.weights_sha256:
        raise WeightsError(f'{estimator.name} was replaced since it was loaded. Load it again.')
    return {
        name: Engine(CONVERTED[name](Path(prepared.graph), estimator.precision), estimator.model)
        for name in prepared.engines
    }
