"""Fitting a confidence to what comes true, when everything else is trained."""

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

CLOSEST = 1e-4
"""A confidence is taken as no nearer to 0 and 1."""


def fit_confidence(head: nn.Module, confidence: np.ndarray, is_right: np.ndarray) -> None:
    """Set gain and shift of a head's confidence by logistic regression (Platt 1999).

    The order of the pixels stays as it is. Training rows cannot do this: a network is more often
    right on what it has learned than elsewhere.

    Args:
        head: One with ``confidence_gain`` 1 and ``confidence_shift`` 0.
        confidence: (N,) what it says, 0..1.
        is_right: (N,) bool, whether that depth was within a factor of 1.25 of the truth.
    """
    said = torch.from_numpy(confidence).double().clamp(CLOSEST, 1 - CLOSEST).logit()
    truth = torch.from_numpy(is_right).double()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([line], line_search_fn='strong_wolfe')

    def loss():
        search.zero_grad()
        # A little pull towards the line as it is: where all are right the best gain is infinite.
        pull = 1e-3 * ((line[0] - 1) ** 2 + line[1] ** 2)
        total = F.binary_cross_entropy_with_logits(line[0] * said + line[1], truth) + pull
        total.backward()
        return total

    search.step(loss)
    with torch.no_grad():
        head.confidence_gain.copy_(line[0])
        head.confidence_shift.copy_(line[1])
