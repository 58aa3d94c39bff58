"""An exported file answers as its weights file does, says the same of itself, or is refused."""

from dataclasses import replace
from functools import cache
import json
import sys

import cv2
import numpy as np
from onnx_file import write_pools
import pytest
import torch
import towers  # noqa: F401  registers tiny-vit
from vlm_depth_ros.core.agreement import BOUNDS
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, DependencyError, VlmDepthError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.exported import ExportedModel, read_metadata
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.inference_graph import exported
from vlm_depth_ros.core.model import DepthModel, load_model, save_model
from vlm_depth_ros.tools import export
from vlm_depth_ros.tools.cli import main

for _library in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(_library)

SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
TINY = ModelConfig('tiny-vit', SLIM, input_hw=(64, 96), camera=TrainingCamera(0.8, 1.1))
ENGINES = ('openvino', 'onnxruntime')


def weights(path, config, seed=0):
    """A weights file of random numbers."""
    torch.manual_seed(seed)
    model = DepthModel(config).eval()
    save_model(path, model, name=path.stem, embed_tower=True, licence='CC0', notice='random')
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Weights of a tiny network, and two images."""
    folder = tmp_path_factory.mktemp('export')
    weights(folder / 'tiny.safetensors', TINY)
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for name in ('a.png', 'b.jpg'):
        cv2.imwrite(str(folder / 'images' / name), rng.integers(0, 256, (48, 64, 3), np.uint8))
    return folder


@pytest.fixture(scope='module')
def pocket_onnx(folder):
    """The shipped weights, exported by the verb and compared on images."""
    out = folder / 'pocket.onnx'
    options = ('--images', str(folder / 'images'), '--json', str(folder / 'found.json'))
    assert main(['export', 'pocket', str(out), *options]) == 0
    return out


@pytest.fixture
def no_second_export(folder, monkeypatch):
    """What was exported before, instead of the network at hand."""
    monkeypatch.setattr(export, 'exported', lambda model: _exported(folder))


@cache
def _exported(folder):
    return exported(load_model(folder / 'tiny.safetensors').requires_grad_(False))


def frames(count):
    return list(np.random.default_rng(1).integers(0, 256, (count, 48, 64, 3), np.uint8))


# --- the file -----------------------------------------------------------------------------------


def test_verb_says_how_far_the_file_is_from_eager(folder, pocket_onnx):
    found = json.loads((folder / 'found.json').read_text())
    assert found['images'] == 2 and found['bound'] == 1e-3
    assert set(found['largest_difference']) == set(ENGINES)
    assert max(found['largest_difference'].values()) < 1e-5


@pytest.mark.parametrize('engine', ENGINES)
def test_exported_file_answers_as_the_weights_do(engine, pocket_onnx):
    """Batches of 1 to 3, and cameras whose focal lengths ask for different input sizes."""
    ours = DepthEstimator.from_weights(pocket_onnx, RuntimeConfig(engine=engine))
    eager = DepthEstimator.from_weights('pocket', RuntimeConfig('cpu'))
    fovs = (50.0, 95.0, 50.0)
    for count in (1, 2, 3):
        cameras = [CameraIntrinsics.from_fov(fov, (48, 64)) for fov in fovs[:count]]
        pairs = zip(ours(frames(count), cameras), eager(frames(count), cameras))
        for found, expected in pairs:
            np.testing.assert_allclose(found.depth_m, expected.depth_m, rtol=1e-4)
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
    assert ours.precision == 'fp32' and len(ours.weights_sha256) == 64


def test_exported_file_says_of_itself_what_the_weights_say(pocket_onnx):
    model, original = ExportedModel(pocket_onnx, RuntimeConfig()), load_model('pocket')
    assert (model.card, model.config) == (original.card, original.config)
    assert model.backbone.spec == replace(original.backbone.spec, embedding_width=None)
    estimator = DepthEstimator.from_weights(pocket_onnx)
    assert estimator.notice == original.card.notice and estimator.device.type == 'cpu'


def test_bf16_is_near(pocket_onnx):
    ours = DepthEstimator.from_weights(
        pocket_onnx, RuntimeConfig(engine='openvino', precision='bf16')
    )
    expected = DepthEstimator.from_weights('pocket', RuntimeConfig('cpu'))(frames(1))[0].depth_m
    np.testing.assert_allclose(ours(frames(1))[0].depth_m, expected, rtol=BOUNDS['bf16'])


def test_torch_export_is_compared_on_rendered_pictures(folder, no_second_export, capsys):
    out = folder / 'tiny.pt2'
    assert main(['export', str(folder / 'tiny.safetensors'), str(out)]) == 0
    said = capsys.readouterr().out
    assert '2 rendered pictures' in said and 'torch.export: largest relative difference' in said
    graph = torch.export.load(out).module()
    assert graph(torch.zeros(3, 3, 64, 96))[0].shape == (3, 1, 64, 96)


# --- refused ------------------------------------------------------------------------------------


def test_wrong_export_is_not_kept(no_second_export, tmp_path, capsys):
    other, out = weights(tmp_path / 'other.safetensors', TINY, seed=1), tmp_path / 'out.pt2'
    out.write_text('before')
    assert main(['export', str(other), str(out)]) == 1
    said = capsys.readouterr().err
    assert 'differs from eager fp32 by' in said and said.count('\n') == 1
    assert out.read_text() == 'before'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['other.safetensors', 'out.pt2']


def test_network_that_cannot_be_exported_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def fails(model):
        raise RuntimeError('Dynamic control flow\nand a page of advice')

    monkeypatch.setattr(export, 'exported', fails)
    assert main(['export', str(folder / 'tiny.safetensors'), str(tmp_path / 'a.onnx')]) == 1
    said = capsys.readouterr().err
    assert 'tiny: this network cannot be exported as .onnx (Dynamic control flow)' in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('tiny.safetensors', 'a.engine'), 'expected a name that ends in .onnx or .pt2'),
        (('none.safetensors', 'a.onnx'), 'neither a file nor a shipped name'),
        (('tiny.safetensors', 'a.onnx', '--images', '{}/empty'), 'found none'),
    ],
)
def test_wrong_call_is_one_line(arguments, said, folder, capsys, monkeypatch):
    (folder / 'empty').mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert main(['export', *(a.format(folder) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    assert not (folder / 'a.onnx').exists()


def test_file_that_is_not_whole_is_refused(pocket_onnx, tmp_path):
    data, cut = pocket_onnx.read_bytes(), tmp_path / 'cut.onnx'
    for length in (0, 1, 5, len(data) // 2, len(data) - 1, len(data) - 500):
        cut.write_bytes(data[:length])
        with pytest.raises(WeightsError) as refused:
            DepthEstimator.from_weights(cut)
        assert 'cut.onnx: ' in str(refused.value) and '\n' not in str(refused.value)


def test_every_changed_header_is_refused_or_read(pocket_onnx, tmp_path):
    """Random bytes never get out as another error."""
    rng, path = np.random.default_rng(0), tmp_path / 'noise.onnx'
    for _ in range(200):
        path.write_bytes(rng.integers(0, 256, rng.integers(1, 60), np.uint8).tobytes())
        try:
            read_metadata(path)
        except WeightsError as err:
            assert 'not a readable ONNX file' in str(err)


def test_graph_of_nonsense_is_one_line(pocket_onnx, tmp_path):
    data, path = bytearray(pocket_onnx.read_bytes()), tmp_path / 'rotten.onnx'
    data[3000:60000] = bytes(57000)
    path.write_bytes(data)
    for engine in ENGINES:
        with pytest.raises(WeightsError) as refused:
            DepthEstimator.from_weights(path, RuntimeConfig(engine=engine))
        assert 'rotten.onnx: ' in str(refused.value)


def test_foreign_file_is_refused(tmp_path):
    path = write_pools(tmp_path / 'pools.onnx')
    with pytest.raises(WeightsError) as refused:
        DepthEstimator.from_weights(path)
    assert 'an ONNX file, but no depth model of this package' in str(refused.value)
    (tmp_path / 'text.onnx').write_text('this is no network at all')
    with pytest.raises(WeightsError, match='not a readable ONNX file'):
        DepthEstimator.from_weights(tmp_path / 'text.onnx')


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'device': 'cuda'}, "device = 'cuda': .*pocket.onnx is run on the CPU"),
        ({'engine': 'eager'}, "engine = 'eager' cannot run .*pocket.onnx"),
        ({'compile': 'on'}, "engine = 'compiled' cannot run"),
        ({'engine': 'onnxruntime', 'precision': 'bf16'}, "precision = 'bf16': engine onnx"),
    ],
)
def test_what_an_exported_file_cannot_have_is_refused(options, said, pocket_onnx):
    with pytest.raises(ConfigError, match=said):
        DepthEstimator.from_weights(pocket_onnx, RuntimeConfig(**options))


def test_what_only_the_network_itself_can_do_is_refused(pocket_onnx):
    estimator = DepthEstimator.from_weights(pocket_onnx)
    with pytest.raises(ConfigError, match='gives no embedding'):
        estimator(frames(1), want_embedding=True)
    with pytest.raises(ConfigError, match='takes no features'):
        _ = estimator.layers
    with pytest.raises(ConfigError, match='has its own tower inside'):
        DepthEstimator.from_weights(pocket_onnx, tower=torch.nn.Identity())


def test_without_any_engine_the_file_is_refused(pocket_onnx, monkeypatch):
    for name in ENGINES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match='takes one of openvino, onnxruntime, and none is'):
        DepthEstimator.from_weights(pocket_onnx)
    with pytest.raises(VlmDepthError, match="engine = 'onnxruntime': "):
        DepthEstimator.from_weights(pocket_onnx, RuntimeConfig(engine='onnxruntime'))
