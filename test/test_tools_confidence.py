"""A confidence after calibration says how often it is right."""

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.confidence import ConfidenceHead
from vlm_depth_ros.tools.confidence import calibrate


@pytest.fixture
def head():
    return ConfidenceHead(4)


def test_gain_and_shift_are_found(head):
    rng = np.random.default_rng(0)
    logit = rng.normal(1, 1.5, 100_000)
    is_right = rng.random(logit.size) < 1 / (1 + np.exp(-(0.4 * logit - 0.7)))
    calibrate(head, (1 / (1 + np.exp(-logit))).astype(np.float32), is_right)
    assert head.gain.item() == pytest.approx(0.4, abs=0.03)
    assert head.shift.item() == pytest.approx(-0.7, abs=0.05)


@pytest.mark.parametrize('right', [True, False], ids=['all right', 'all wrong'])
@pytest.mark.parametrize('said', [0.0, 0.5, 1.0])
def test_one_sided_truth_gives_finite_values(right, said, head):
    calibrate(head, np.full(50, said, np.float32), np.full(50, right))
    values = torch.stack([head.gain, head.shift])
    assert torch.isfinite(values).all()
