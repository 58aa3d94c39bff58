"""A confidence after calibration says how often it is right."""

import numpy as np
import pytest
import torch
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.tools.calibration import fit_confidence


@pytest.fixture
def head():
    spec = BackboneSpec(
        'tower', True, (4,) * 4, (4, 8, 16, 32), 4, None, (64, 64), False, (0.5,) * 3, (0.5,) * 3
    )
    widths = {'widths': [4, 4, 4, 4], 'film_width': 4, 'output_width': 2}
    return build_head({'name': 'space_clip', 'confidence': True, **widths}, spec)


def test_gain_and_shift_are_found(head):
    rng = np.random.default_rng(0)
    logit = rng.normal(1, 1.5, 100_000)
    is_right = rng.random(logit.size) < 1 / (1 + np.exp(-(0.4 * logit - 0.7)))
    fit_confidence(head, (1 / (1 + np.exp(-logit))).astype(np.float32), is_right)
    assert head.confidence_gain.item() == pytest.approx(0.4, abs=0.03)
    assert head.confidence_shift.item() == pytest.approx(-0.7, abs=0.05)


@pytest.mark.parametrize('right', [True, False], ids=['all right', 'all wrong'])
@pytest.mark.parametrize('said', [0.0, 0.5, 1.0])
def test_one_sided_truth_gives_finite_values(right, said, head):
    fit_confidence(head, np.full(50, said, np.float32), np.full(50, right))
    values = torch.stack([head.confidence_gain, head.confidence_shift])
    assert torch.isfinite(values).all()
