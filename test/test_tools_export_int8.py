"""A file in 8 bits is nearly what the weights are, and runs as they do, or it is not written."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
import towers  # noqa: F401  registers tiny-resnet
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, InputError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.exported import ExportedModel
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.heads.base import HeadOutput
from vlm_depth_ros.core.inference_graph import exported, onnx_program
from vlm_depth_ros.core.model import DepthModel, load_model, save_model
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools import export
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.quantize import Loss, mean_difference, photographs_of, quantise

for _library in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(_library)

CAMERA = TrainingCamera(0.8, 1.1)
TINY = ModelConfig('tiny-resnet', {'name': 'linear'}, input_hw=(64, 96), camera=CAMERA)
ENGINES = ('openvino', 'onnxruntime')


def weights(path, bias=0.0):
    """A weights file of random numbers; the larger the bias, the farther all things are."""
    torch.manual_seed(0)
    model = DepthModel(TINY).eval()
    with torch.no_grad():
        model.head.local.weight *= 20  # else it hardly sees the pictures
        model.head.local.bias.fill_(bias)
    save_model(path, model, name=path.stem, embed_tower=True, licence='CC0')
    return path


def rooms(folder):
    """Eight pictures of coarse noise with depth, a pairs.csv folder."""
    rng, camera = np.random.default_rng(0), CameraIntrinsics(51.2, 52.8, 31.5, 23.5, 64, 48)
    frames = []
    for _ in range(8):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        rgb = cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)
        depth_m = rng.uniform(0.5, 5.0, (48, 64)).astype(np.float32)
        frames.append(SourceFrame(rgb, intrinsics=camera, depth_m=depth_m))
    write_pairs(folder, frames)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Weights of a tiny network, and photographs."""
    folder = tmp_path_factory.mktemp('int8')
    weights(folder / 'tiny.safetensors')
    rooms(folder / 'rooms')
    return folder


@pytest.fixture(scope='module')
def program(folder):
    return onnx_program(exported(load_model(folder / 'tiny.safetensors').requires_grad_(False)))


@pytest.fixture
def no_second_export(program, monkeypatch):
    """What was exported before, instead of seconds for the same again."""
    monkeypatch.setattr(export, 'exported', lambda model: None)
    monkeypatch.setattr(export, 'onnx_program', lambda graph: program)


@pytest.fixture(scope='module')
def int8(folder, program):
    """The weights in 8 bits, by the verb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'exported', lambda model: None)
        patch.setattr(export, 'onnx_program', lambda graph: program)
        out, found = folder / 'tiny.onnx', folder / 'found.json'
        call = ('export', str(folder / 'tiny.safetensors'), str(out), '--int8')
        assert main([*call, '--images', str(folder / 'rooms'), '--json', str(found)]) == 0
    return out


def test_verb_says_what_8_bits_cost_in_every_engine(folder, int8):
    found = json.loads((folder / 'found.json').read_text())
    assert found['images'] == 8 and found['bound'] == {'difference': 0.01, 'abs_rel_rise': 0.01}
    assert set(found['int8']) == {'openvino fp32', 'openvino bf16', 'onnxruntime fp32'}
    for loss in found['int8'].values():
        before, after = loss['abs_rel']
        assert 0 < loss['difference'] < 0.01 and after == pytest.approx(before, rel=0.01)


def kinds(path):
    """Name, operation and whether both inputs come from 8 bits, of each product in a file."""
    import onnx

    nodes = onnx.load(path).graph.node
    rounded = {n.output[0] for n in nodes if n.op_type == 'DequantizeLinear'}
    products = [n for n in nodes if n.op_type in ('Conv', 'Gemm', 'MatMul')]
    return [(n.name, n.op_type, rounded.issuperset(n.input[:2])) for n in products]


def test_convolutions_are_in_8_bits(int8):
    convolutions = [in_8_bits for _, kind, in_8_bits in kinds(int8) if kind == 'Conv']
    assert len(convolutions) > 8 and all(convolutions)


def test_attention_small_matrices_and_what_a_softmax_is_given_stay_in_fp32(tmp_path):
    from onnx import checker, helper, numpy_helper, save_model, TensorProto

    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(512, width)).astype(np.float32), f'w{width}')
        for width in (512, 8, 600)
    ]
    nodes = [
        helper.make_node('MatMul', ['image', 'w512'], ['x'], 'large'),
        helper.make_node('Transpose', ['x'], ['turned'], 'turn', perm=[0, 1, 3, 2]),
        helper.make_node('MatMul', ['x', 'turned'], ['seen'], 'attention'),
        helper.make_node('MatMul', ['x', 'w8'], ['few'], 'small'),
        helper.make_node('MatMul', ['x', 'w600'], ['bins'], 'bins'),
        helper.make_node('Transpose', ['bins'], ['last'], 'turn_bins', perm=[0, 1, 3, 2]),
        helper.make_node('Softmax', ['last'], ['shares'], 'softmax'),
    ]
    image, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, *hw])
        for name, hw in (
            ('image', (4, 512)), ('seen', (4, 4)), ('few', (4, 8)), ('shares', (600, 4)),
        )
    )  # fmt: skip
    graph = helper.make_graph(nodes, 'g', [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=9)
    checker.check_model(model)
    save_model(model, tmp_path / 'a.onnx')
    quantise(tmp_path / 'a.onnx', tmp_path / 'b.onnx', [torch.randn(1, 1, 4, 512)])
    assert [name for name, _, in_8_bits in kinds(tmp_path / 'b.onnx') if in_8_bits] == ['large']


@pytest.mark.parametrize('engine', ENGINES)
def test_the_file_runs_as_any_exported_one(engine, folder, int8):
    ours = DepthEstimator.from_weights(int8, RuntimeConfig(engine=engine))
    eager = DepthEstimator.from_weights(folder / 'tiny.safetensors', RuntimeConfig('cpu'))
    images = [frame.rgb for frame in photographs_of(folder / 'rooms')[:3]]
    for found, expected in zip(ours(images), eager(images)):
        near = np.abs(found.depth_m / expected.depth_m - 1)
        assert 0 < np.nanmean(near) < 0.01


def test_the_file_says_of_itself_what_the_weights_say(folder, int8):
    model, original = ExportedModel(int8, RuntimeConfig()), load_model(folder / 'tiny.safetensors')
    assert (model.card, model.config) == (original.card, original.config)


def test_photographs_without_depth_do(folder, no_second_export, tmp_path, capsys):
    images = str(folder / 'rooms' / 'rgb')
    call = ['export', str(folder / 'tiny.safetensors'), str(tmp_path / 'a.onnx'), '--int8']
    assert main([*call, '--images', images]) == 0
    said = capsys.readouterr().out
    assert 'onnxruntime fp32: differs from eager fp32 by 0.' in said and 'AbsRel' not in said


# --- refused ------------------------------------------------------------------------------------


def test_file_that_loses_too_much_is_not_kept(folder, no_second_export, tmp_path, capsys):
    other, out = weights(tmp_path / 'other.safetensors', bias=0.1), tmp_path / 'out.onnx'
    out.write_text('before')
    call = ['export', str(other), str(out), '--int8', '--images', str(folder / 'rooms')]
    assert main(call) == 1
    said = capsys.readouterr().err
    assert 'out.onnx: in openvino fp32 it differs from eager fp32 by ' in said
    assert 'expected at most 1% in the mean' in said and said.count('\n') == 1
    assert out.read_text() == 'before'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['other.safetensors', 'out.onnx']


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (('a.onnx',), 'name them by --images DIR'),
        (('a.onnx', '--images', 'few'), 'few: 1 images, expected at least 8 for --int8'),
        (('a.onnx', '--images', 'none'), 'none: does not exist'),
        (('a.pt2', '--images', 'rooms'), 'expected a name that ends in .onnx for --int8'),
    ],
)
def test_wrong_call_is_one_line(arguments, said, folder, capsys, monkeypatch):
    (folder / 'few').mkdir(exist_ok=True)
    cv2.imwrite(str(folder / 'few/a.png'), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.chdir(folder)
    assert main(['export', 'tiny.safetensors', '--int8', *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    assert not (folder / 'a.onnx').exists() and not (folder / 'a.pt2').exists()


def test_without_onnx_runtime_nothing_is_written(
    folder, no_second_export, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, 'onnxruntime.quantization', None)
    call = ['export', str(folder / 'tiny.safetensors'), str(tmp_path / 'a.onnx'), '--int8']
    assert main([*call, '--images', str(folder / 'rooms')]) == 1
    said = capsys.readouterr().err
    assert '--int8: ' in said and "pip install 'vlm_depth_ros[engines]'" in said
    assert said.count('\n') == 1 and list(tmp_path.iterdir()) == []


# --- the rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('difference', 'abs_rel', 'is_small'),
    [
        (0.01, None, True),
        (0.0101, None, False),
        (0.005, (0.2, 0.2019), True),
        (0.005, (0.2, 0.2021), False),
        (0.005, (0.2, 0.15), True),
        (float('inf'), None, False),
        (float('nan'), None, False),
    ],
)
def test_under_one_percent_is_small(difference, abs_rel, is_small):
    assert Loss(difference, abs_rel).is_small is is_small


def test_difference_counts_depth_confidence_and_missing_numbers():
    one, near = torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 1.04], [1.0, 1.0]]]])
    sure, less = torch.full((1, 1, 2, 2), 0.9), torch.full((1, 1, 2, 2), 0.7)
    assert mean_difference(HeadOutput(one), HeadOutput(near), 0.1) == pytest.approx(0.01)
    found = mean_difference(HeadOutput(one, sure), HeadOutput(near, less), 0.1)
    assert found == pytest.approx(0.2)
    holed = HeadOutput(torch.where(near > 1, torch.nan, near))
    assert mean_difference(HeadOutput(one), holed, 0.1) == float('inf')


def test_photographs_are_spread_over_the_source(tmp_path):
    for n in range(100):
        cv2.imwrite(str(tmp_path / f'{n}.png'), np.full((8, 8, 3), n, np.uint8))
    shades = [int(frame.rgb[0, 0, 0]) for frame in photographs_of(tmp_path)]
    assert len(shades) == 32 and (shades[0], shades[-1]) == (0, 99)
    assert set(np.diff(shades)) == {3, 4}


def test_photographs_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='by --images DIR'):
        photographs_of(None)
    for n in range(8):
        (tmp_path / f'{n}.png').write_bytes(b'no picture')
    with pytest.raises(InputError, match='is not a JPEG'):
        photographs_of(tmp_path)
