"""Float32 without TF32, for what others are compared with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Calculate in whole float32 meanwhile, on a GPU too, in the whole process.

    TF32 keeps 10 bits of a factor, about 1e-3 of it, and torch uses it in convolutions unless told
    otherwise. Who set it by the newer interface (``fp32_precision``) keeps that: torch refuses to
    mix them.
    """
    cudnn = torch.backends.cudnn
    try:
        convolutions, products = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        yield
        return
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision('highest')
    try:
        yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
