"""How a network begins to run: by which engine, and in which precision."""

import torch
from torch import nn
from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.cuda_graphs import CudaGraphs
from vlm_depth_ros.core.devices import capability_of, precision_on
from vlm_depth_ros.core.engines import engine_of
from vlm_depth_ros.core.exported import ExportedModel
from vlm_depth_ros.core.half_precision import checked_precision
from vlm_depth_ros.core.trial import Way


def first_way(
    model: nn.Module, runtime: RuntimeConfig, device: torch.device, name: str, owns_tower: bool
) -> tuple[Way, str]:
    """The way that `runtime` asks for, as far as it answers what eager fp32 does; its precision.

    Args:
        model: On `device`, in evaluation mode, in fp32.
        runtime: Names engine and precision.
        device: Where it runs.
        name: What to call the network.
        owns_tower: False: somebody else may move its tower, or look into it while it runs.

    Raises:
        ConfigError: If engine or GPU lack what is asked for.
        DependencyError: If the library of the engine is not installed.
        WeightsError: If the network answers nothing finite.
        RuntimeError: If the device fails, in torch's words; `DeviceGuard` puts them into ours.
    """
    precision = precision_on(device.type, runtime.precision, capability_of(device))
    if isinstance(model, ExportedModel):
        return Way(model.engine, model), precision
    network = engine_of(model, runtime, precision, device)
    if network is not model:
        return Way(runtime.engine_name, network), precision
    precision = checked_precision(model, precision, device, name)
    if device.type == 'cuda' and runtime.engine == 'auto' and owns_tower:
        network = CudaGraphs(model, precision, name)
    return Way('eager', network), precision
