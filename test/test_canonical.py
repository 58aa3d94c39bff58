"""Other cameras than that of the training: size of the network's input, factor on depth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from vlm_depth_ros.core.camera_model import CameraModel
from vlm_depth_ros.core.canonical import LARGEST, Seen, seen_by
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.estimator import DepthEstimator, Frame
from vlm_depth_ros.core.features import BackboneSpec
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.options import OutputOptions

VGA = CameraIntrinsics(525.0, 530.0, 319.5, 239.5, 640, 480)
FIXED = ModelConfig(
    'pocket-tower', input_hw=(192, 256), camera=TrainingCamera(525.0 / 640, 530.0 / 480)
)
GROWING = replace(FIXED, size_by_focal=1.0)
TELE = VGA.cropped(120, 160, (240, 320))
WIDE = replace(VGA, fx_px=420.0, fy_px=424.0)


def test_training_camera_sees_the_training_input_whatever_its_size():
    for model in (FIXED, GROWING):
        for camera in (VGA, VGA.resized((240, 320)), None):
            assert seen_by(model, camera, 32) == Seen((192, 256), pytest.approx(1.0))


def test_by_default_half_the_view_is_twice_as_far():
    assert seen_by(FIXED, TELE) == Seen((192, 256), pytest.approx(2.0))
    assert seen_by(replace(GROWING, camera=None), TELE) == Seen((192, 256), 1.0)


def test_size_of_the_input_can_take_the_whole_difference():
    """Then things are as large as in training, and depth is left as it is."""
    assert seen_by(GROWING, TELE) == Seen((96, 128), pytest.approx(1.0))
    assert seen_by(GROWING, WIDE, 16) == Seen((240, 320), pytest.approx(1.0))


def test_both_share_the_difference():
    seen = seen_by(replace(FIXED, size_by_focal=0.5), TELE)
    assert seen == Seen((136, 181), pytest.approx(2**0.5, rel=1e-3))


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_pixels_of_the_input_and_the_factor_always_make_up_the_focal_length(share):
    for multiple in (1, 32):
        (h, w), scale = seen_by(replace(FIXED, size_by_focal=share), TELE, multiple)
        assert scale == pytest.approx(2 * (h * w / (192 * 256)) ** 0.5)
        assert h % multiple == w % multiple == 0


def test_fisheye_does_not_make_the_input_endless():
    h, w = seen_by(GROWING, replace(VGA, fx_px=60.0, fy_px=60.0)).input_hw
    assert h * w == pytest.approx(LARGEST * 192 * 256, rel=0.02)


class Sizes(nn.Module):
    """A network that answers the width of its input, in metres."""

    def __init__(self):
        super().__init__()
        self.config = replace(FIXED, size_by_focal=0.5, input_hw=(64, 96))
        self.backbone = nn.Module()
        self.backbone.spec = BackboneSpec(
            tower='sizes', is_hierarchical=True, widths=(1,), strides=(32,), pooled_width=1,
            embedding_width=None, input_hw=(64, 96), has_class_token=False, mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )  # fmt: skip
        self.head = nn.Conv2d(1, 1, 1)
        self.calls = []

    def forward(self, image):
        self.calls.append(tuple(image.shape))
        shape = len(image), 1, 4, 4
        return HeadOutput(torch.full(shape, image.shape[-1] / 100))


def test_estimator_groups_cameras_of_one_input_size_and_keeps_their_order():
    model = Sizes()
    estimator = DepthEstimator(model)
    rgb = [np.zeros(camera.image_hw + (3,), np.uint8) for camera in (VGA, TELE, VGA)]
    found = estimator(rgb, [VGA, TELE, None])
    assert model.calls == [(2, 3, 64, 96), (1, 3, 32, 64)]
    (h, w), scale = seen_by(model.config, TELE, 32)
    medians = [np.median(answer.depth_m) for answer in found]
    assert medians == pytest.approx([0.96, w / 100 * scale, 0.96])


def test_node_gets_the_same_and_nothing_of_it_without_focal_correction():
    estimator = DepthEstimator(Sizes())
    k = (TELE.fx_px, 0.0, TELE.cx_px, 0.0, TELE.fy_px, TELE.cy_px, 0.0, 0.0, 1.0)
    r, p = (0.0,) * 9, (0.0,) * 12
    camera = CameraModel(TELE.width_px, TELE.height_px, 'plumb_bob', (), k, r, p)
    frame = Frame(np.zeros((240, 320, 3), np.uint8), camera)

    def depth_m(**options):
        (out,) = estimator.process([frame], OutputOptions(**options))
        return np.frombuffer(out.depth.data, np.float32)

    (_, w), scale = seen_by(estimator.config, TELE, 32)
    assert depth_m() == pytest.approx(w / 100 * scale)
    assert depth_m(focal_correction=False) == pytest.approx(0.96)


def test_share_out_of_bounds_or_on_a_tower_of_one_size_is_refused():
    with pytest.raises(ConfigError, match='size_by_focal = 1.5: expected 0 to 1'):
        replace(FIXED, size_by_focal=1.5)
    config = ModelConfig('ViT-B-32', {'name': 'linear'}, size_by_focal=0.5)
    with torch.device('meta'), pytest.raises(ConfigError, match="'ViT-B-32' takes inputs of one"):
        DepthModel(config)
