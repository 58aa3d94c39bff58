"""One tower for several consumers in a process, and features that somebody else computed."""

from dataclasses import replace
import json
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from torch import nn
from towers import build
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.devices import device_of_tower
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.features import Features
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.model import DepthModel, save_model

CPU = RuntimeConfig(device='cpu', precision='fp32')
HW = (64, 96)
SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
KINDS = {
    'native transformer': ModelConfig('tiny-vit', SLIM, input_hw=HW),
    'timm transformer': ModelConfig('tiny-siglip', SLIM, input_hw=(160, 160)),
    'resnet': ModelConfig('tiny-resnet', {'name': 'linear'}, input_hw=(64, 64)),
    'hierarchical': ModelConfig('pocket-tower', SLIM, input_hw=(64, 96)),
}
DOC = Path(__file__).parent.parent / 'docs' / 'sharing.md'


def images(count=2):
    """(H, W, 3) uint8 of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48 + 20 * i, 64, 3), np.uint8) for i in range(count)]


def weights(folder, config, head_seed):
    """A file with a random head on the tower of seed 0, which it embeds."""
    backbone = build(config.tower, config.input_hw)
    torch.manual_seed(head_seed)
    path = folder / f'head{head_seed}.safetensors'
    model = DepthModel(replace(config, camera=TrainingCamera(0.8, 1.1)), backbone)
    save_model(path, model, name=path.stem, embed_tower=True)
    return path


class Consumers(NamedTuple):
    """Two heads on one tower, and the same with a tower each."""

    first: DepthEstimator
    second: DepthEstimator
    separate: list[DepthEstimator]


@pytest.fixture(scope='module', params=KINDS.values(), ids=KINDS)
def consumers(request, tmp_path_factory):
    """Of every kind of tower."""
    folder = tmp_path_factory.mktemp('weights')
    files = [weights(folder, request.param, seed) for seed in (1, 2)]
    separate = [DepthEstimator.from_weights(file, CPU) for file in files]
    first = DepthEstimator.from_weights(files[0], CPU)
    second = DepthEstimator.from_weights(files[1], CPU, tower=first.backbone)
    return Consumers(first, second, separate)


@pytest.fixture(scope='module')
def vit(tmp_path_factory):
    """One on tiny-vit."""
    return weights(tmp_path_factory.mktemp('vit'), KINDS['native transformer'], 1)


@pytest.fixture(scope='module')
def alone(vit):
    """The estimator of that file, with a tower of its own."""
    return DepthEstimator.from_weights(vit, CPU)


def features_of(estimator, rgb, want_embedding=False):
    """What its tower says, computed outside of it."""
    with torch.no_grad():
        batch = estimator.tower_input(rgb)
        return estimator.backbone(batch, estimator.layers, want_embedding)


def num_bytes(*modules):
    """Memory of all parameters and buffers, each once."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


# --- one tower, two estimators ------------------------------------------------------------------


def test_two_estimators_on_one_tower_answer_what_two_towers_would(consumers):
    """Bit for bit, also after the other one has run."""
    first, second, separate = consumers
    assert second.backbone is first.backbone
    for rgb in images():
        for shared, own in zip((first, second, first), (*separate, separate[0])):
            assert np.array_equal(shared(rgb).depth_m, own(rgb).depth_m)
    assert not np.array_equal(first(rgb).depth_m, second(rgb).depth_m)


def test_a_shared_tower_is_held_once(consumers):
    first, second, separate = consumers
    tower, heads = num_bytes(first.backbone), num_bytes(first.model.head, second.model.head)
    assert num_bytes(first.model, second.model) == tower + heads
    assert num_bytes(*(e.model for e in separate)) == 2 * tower + heads


def test_a_tower_of_somebody_else_stays_what_and_where_it_is(vit):
    """Neither copied, nor laid out anew, nor frozen; the owner's answers stay bit for bit."""
    owner = nn.Module()
    owner.visual = build('tiny-vit', HW).tower
    image = torch.randn(1, 3, *HW, generator=torch.Generator().manual_seed(0))
    before = owner.visual(image)
    was = {k: (id(p), p.data_ptr(), p.stride(), p.requires_grad)
           for k, p in owner.visual.named_parameters()}  # fmt: skip
    for tower in (owner, owner.visual):
        estimator = DepthEstimator.from_weights(vit, CPU, tower=tower)
        assert estimator.backbone.tower is owner.visual
        estimator(images()[0], want_embedding=True)
    assert was == {k: (id(p), p.data_ptr(), p.stride(), p.requires_grad)
                   for k, p in owner.visual.named_parameters()}  # fmt: skip
    assert torch.equal(owner.visual(image), before)


def test_depth_on_a_given_tower_is_that_on_the_own_one(vit, alone):
    given = DepthEstimator.from_weights(vit, CPU, tower=build('tiny-vit', HW).tower)
    for rgb in images():
        found, expected = (e(rgb, want_embedding=True) for e in (given, alone))
        np.testing.assert_allclose(found.depth_m, expected.depth_m, rtol=1e-5)
        np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-6)


def test_one_pass_gives_the_owners_embedding(vit):
    """What the owner of a CLIP computes by a second pass over the same input."""
    tower = build('tiny-vit', HW).tower
    estimator = DepthEstimator.from_weights(vit, CPU, tower=tower)
    rgb = images()
    with torch.no_grad():
        expected = nn.functional.normalize(tower(estimator.tower_input(rgb)), dim=-1)
    found = np.stack([answer.embedding for answer in estimator(rgb, want_embedding=True)])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_tower_that_still_trains_is_shared_too(vit, alone):
    """Its gradients are its owner's: depth neither needs nor touches them."""
    tower = build('tiny-vit', HW).tower.train()
    estimator = DepthEstimator.from_weights(vit, CPU, tower=tower)
    found = estimator(images()[0])
    np.testing.assert_allclose(found.depth_m, alone(images()[0]).depth_m, rtol=1e-5)
    assert all(p.requires_grad and p.grad is None for p in tower.parameters())


# --- a foreign tower ----------------------------------------------------------------------------


@pytest.mark.parametrize(('tower', 'message'), [
    (lambda: build('tiny-vit', HW, seed=5).tower, 'its head was trained on another tower'),
    (lambda: build('tiny-vit', HW, seed=5), 'its head was trained on another tower'),
    (lambda: build('tiny-resnet').tower, "the given ModifiedResNet is not a tower 'tiny-vit'"),
    (lambda: build('tiny-siglip'), "the given backbone is 'tiny-siglip' for .* needs 'tiny-vit'"),
    (lambda: build('tiny-vit'), r"the given backbone is 'tiny-vit' for \(64, 64\) input"),
    (lambda: nn.Linear(2, 2), "the given Linear is not a tower 'tiny-vit'"),
])  # fmt: skip
def test_a_foreign_tower_is_refused(vit, tower, message):
    with pytest.raises(WeightsError, match=message) as caught:
        DepthEstimator.from_weights(vit, CPU, tower=tower())
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('wanted', 'there'), [('auto', True), ('cpu', True), ('cuda', False)])
def test_a_shared_tower_decides_the_device(vit, wanted, there):
    """`auto` goes where it is; another device is refused, since moving it would be its owner's."""
    tower = build('tiny-vit', HW)
    if there:
        runtime = RuntimeConfig(device=wanted)
        assert DepthEstimator.from_weights(vit, runtime, tower=tower).device.type == 'cpu'
        return
    with pytest.raises(ConfigError, match=f"device '{wanted}', but the given tower is on cpu"):
        DepthEstimator.from_weights(vit, RuntimeConfig(device=wanted), tower=tower)


@pytest.mark.parametrize(('wanted', 'there'), [
    ('auto', True), ('cuda', True), ('cuda:1', True), ('cuda:0', False), ('cpu', False),
])  # fmt: skip
def test_a_tower_on_the_second_gpu_is_met_there(wanted, there):
    tower = nn.Module()
    where = torch.device('cuda:1')
    tower.parameters = lambda: iter([type('Parameter', (), {'device': where})])
    if there:
        assert device_of_tower(tower, wanted) == where
    else:
        with pytest.raises(ConfigError, match=f"'{wanted}', but the given tower is on cuda:1"):
            device_of_tower(tower, wanted)


# --- features from elsewhere --------------------------------------------------------------------


def test_features_from_elsewhere_give_the_same_depth(consumers):
    """Bit for bit, for each image of a batch at its own size and with its own camera."""
    estimator, rgb = consumers.first, images()
    cameras = [CameraIntrinsics(70.0, 70.0, 31.5, 23.5, 64, 48), None]
    found = estimator.from_features(
        features_of(estimator, rgb), [i.shape[:2] for i in rgb], cameras
    )
    for answer, expected in zip(found, estimator(rgb, cameras)):
        assert np.array_equal(answer.depth_m, expected.depth_m)
        assert answer.intrinsics == expected.intrinsics
        assert answer.embedding is None and answer.latency_ms > 0


def test_one_tower_pass_serves_two_heads(consumers):
    """More maps than a head reads do no harm."""
    first, second, _ = consumers
    rgb = images(1)
    with torch.no_grad():
        layers = range(first.backbone.spec.num_layers + 1)
        features = first.backbone(first.tower_input(rgb), layers)
    for estimator in (first, second):
        (found,) = estimator.from_features(features, (48, 64))
        assert np.array_equal(found.depth_m, estimator(rgb[0]).depth_m)


def test_an_embedding_in_the_features_is_handed_on(alone):
    rgb = images()
    with torch.enable_grad():  # of a tower that still trains, too
        features = alone.backbone(alone.tower_input(rgb), alone.layers, want_embedding=True)
    features.embedding.requires_grad_()
    found = alone.from_features(features, [i.shape[:2] for i in rgb])
    for answer, expected in zip(found, alone(rgb, want_embedding=True)):
        np.testing.assert_array_equal(answer.embedding, expected.embedding)


def test_one_size_and_one_camera_may_stand_for_all(alone):
    features = features_of(alone, images(1) * 3)
    camera = CameraIntrinsics(70.0, 70.0, 31.5, 23.5, 64, 48)
    found = alone.from_features(features, (48, 64), camera)
    assert [(a.depth_m.shape, a.intrinsics) for a in found] == [((48, 64), camera)] * 3


def test_features_of_no_image_give_no_prediction(alone):
    features = features_of(alone, images(1))
    none = Features({k: m[:0] for k, m in features.maps.items()}, features.pooled[:0])
    assert alone.from_features(none, []) == alone.from_features(none, (48, 64)) == []


def test_features_in_half_precision_serve_a_head_in_full(alone):
    """A robot's tower may run under autocast."""
    rgb = images(1)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        features = alone.backbone(alone.tower_input(rgb), alone.layers)
    assert features.maps[12].dtype == torch.bfloat16
    (found,) = alone.from_features(features, (48, 64))
    np.testing.assert_allclose(found.depth_m, alone(rgb[0]).depth_m, rtol=0.02)


def test_a_head_in_half_precision_gives_the_same_from_features(vit):
    half = DepthEstimator.from_weights(vit, RuntimeConfig(device='cpu', precision='bf16'))
    rgb = images(1)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        features = half.backbone(half.tower_input(rgb), half.layers)
    (found,) = half.from_features(features, (48, 64))
    assert np.array_equal(found.depth_m, half(rgb[0]).depth_m)


def without_layer_six(features):
    """Half of what the head reads."""
    return replace(features, maps={k: m for k, m in features.maps.items() if k != 6})


def narrower(features):
    """Of a tower of another width."""
    return replace(features, maps=features.maps | {6: features.maps[6][:, :-4]})


def finer(features):
    """Of another input size."""
    return replace(features, maps={k: m.repeat(1, 1, 2, 2) for k, m in features.maps.items()})


def projected(features):
    """The embedding in place of what stands before it."""
    return replace(features, pooled=features.pooled[:, :24])


def fewer(features):
    """A map of fewer images than the others."""
    return replace(features, maps=features.maps | {6: features.maps[6][:1]})


def elsewhere(features):
    """On a device where the head is not."""
    return replace(features, pooled=features.pooled.to('meta'))


def of_another_projection(features):
    """A text width that the tower does not have."""
    return replace(features, embedding=features.pooled)


@pytest.mark.parametrize(('change', 'message'), [
    (without_layer_six,
     r'^features have layers \[3, 4, 5, 7, 9, 12\], the head also needs \[6\]\. Ask the tower for '
     r'DepthEstimator\.layers\.$'),
    (narrower,
     r"^features\.maps\[6\] is \(2, 28, 4, 6\), expected \(2, 32, 4, 6\) from tower 'tiny-vit' at "
     r'\(64, 96\) input\. Use features of that tower\.$'),
    (finer, r'^features\.maps\[\d+\] is \(2, 32, 8, 12\), expected \(2, 32, 4, 6\)'),
    (projected, r'^features\.pooled is \(2, 24\), expected \(2, 32\)'),
    (fewer, r'^features\.maps\[6\] is \(1, 32, 4, 6\), expected \(2, 32, 4, 6\)'),
    (elsewhere, r'^features\.pooled is on meta, the head on cpu\. Run both on one device\.$'),
    (of_another_projection, r'^features\.embedding is \(2, 32\), expected \(2, 24\)'),
])  # fmt: skip
def test_features_that_do_not_fit_are_refused(alone, change, message):
    features = change(features_of(alone, images()))
    with pytest.raises(InputError, match=message):
        alone.from_features(features, (48, 64))


def test_features_of_a_foreign_tower_are_refused(alone):
    foreign = build('tiny-timm-vit', (160, 160))
    with torch.no_grad():
        features = foreign(torch.zeros(1, 3, 160, 160), range(foreign.spec.num_layers + 1))
    with pytest.raises(InputError, match=r'the head also needs \[7, 9, 12\]'):
        alone.from_features(features, (48, 64))


@pytest.mark.parametrize(('image_hw', 'cameras', 'message'), [
    ((48,), None, r'^image_hw \(48,\): expected \(height, width\) of the camera image, or a list'),
    ((48, 64, 3), None, r'^image_hw \(48, 64, 3\): expected'),
    ((0, 64), None, r'^image_hw \(0, 64\): expected'),
    ((48.0, 64), None, r'^image_hw \(48\.0, 64\): expected'),
    ([(48, 64)], None, r'^features of 2 images but 1 image_hw\.$'),
    ([], None, r'^features of 2 images but 0 image_hw\.$'),
    ((48, 64), [None], r'^2 images but 1 cameras\.$'),
    ((9, 9), CameraIntrinsics(70.0, 70.0, 31.5, 23.5, 64, 48),
     r'^image \(9, 9\) but its camera is for \(48, 64\)'),
])  # fmt: skip
def test_sizes_and_cameras_that_do_not_fit_the_features_are_refused(
    alone, image_hw, cameras, message
):
    with pytest.raises(InputError, match=message):
        alone.from_features(features_of(alone, images()), image_hw, cameras)


def test_what_the_tower_sees_is_made_of_images_only(alone):
    with pytest.raises(InputError, match='image of float32: expected uint8'):
        alone.tower_input([images()[0].astype(np.float32)])


# --- the page -----------------------------------------------------------------------------------


TINY_CLIP = {
    'embed_dim': 24,
    'vision_cfg': {'image_size': 64, 'layers': 4, 'width': 32, 'head_width': 16, 'patch_size': 16},
    'text_cfg': {'context_length': 8, 'vocab_size': 64, 'width': 16, 'heads': 2, 'layers': 1},
}


def test_the_example_of_the_page_runs(tmp_path, capsys):
    """As it stands but for its size: a tiny model in place of ViT-B-16, two rounds of timing."""
    (tmp_path / 'tiny-clip.json').write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    blocks = re.findall(r'^```python\n(.*?)^```', DOC.read_text(encoding='utf-8'), re.M | re.S)
    code, num_threads = '\n'.join(blocks), torch.get_num_threads()
    for original, small in (
        ("'ViT-B-16-quickgelu'", "'tiny-clip'"),
        ('ROUNDS = 10', 'ROUNDS = 2'),
    ):
        assert original in code
        code = code.replace(original, small)
    try:
        exec(compile(code, str(DOC), 'exec'), {})
    finally:
        torch.set_num_threads(num_threads)
    printed = capsys.readouterr().out
    assert 'depth (480, 640) embedding (24,)' in printed
    assert len(re.findall(r'^\| .* ms \|$', printed, re.M)) == 5
