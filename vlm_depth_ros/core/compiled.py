"""The network through ``torch.compile``."""

import os

import torch
from torch import nn
from vlm_depth_ros.core.graph_cache import cache_folder
from vlm_depth_ros.core.heads.base import HeadOutput

CACHE_VARIABLE = 'TORCHINDUCTOR_CACHE_DIR'


class Compiled:
    """What the compiler makes of a network, behind its call.

    Args:
        model: The network itself, which still answers where an embedding is asked for: the first
            such frame would wait for another compilation.
    """

    def __init__(self, model: nn.Module):
        keep_kernels()
        self._model = model
        self._compiled = torch.compile(model)

    def __call__(self, image: torch.Tensor, want_embedding: bool = False) -> HeadOutput:
        """As `DepthModel.forward`."""
        return self._model(image, True) if want_embedding else self._compiled(image)


def keep_kernels() -> None:
    """Let the compiler keep its results in the user's cache folder, unless it is told where.

    Its own choice is a folder for temporary files, which is empty after each start of the machine.
    """
    folder = cache_folder('inductor')
    if folder.is_absolute():
        os.environ.setdefault(CACHE_VARIABLE, str(folder))
