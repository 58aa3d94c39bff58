"""Checkpoints of SPACE-CLIP's own code answer here as they answer there, or are refused."""

import json
import re

import numpy as np
import open_clip
from PIL import Image
import pytest
from quick_start import quick_start
from safetensors import safe_open
from safetensors.torch import save_file
from test_space_clip import reference
from test_tower_naming import named, randomised
import torch
import torch.nn.functional as F
from towers import picture, shared, TAG
from vlm_depth_ros.core.config import RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import load_model, METADATA_KEY, read_card
from vlm_depth_ros.tools import import_space_clip
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.import_weights import read_checkpoint, training_camera

transformers = pytest.importorskip('transformers')

HUB = 'test/tiny-clip'
EARLY, MIDDLE = (2, 1, 0), (7, 5, 4)
SIZE = {'config': {'clip_input_size': 64, 'clip_model_name': HUB}}
VIT_B = BackboneSpec(
    'ViT-B-16', False, (768,) * 13, (16,) * 13, 768, 512, (224, 224), True, (0.5,) * 3, (0.5,) * 3
)


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    """A tower that nobody published, so that a test takes seconds."""
    tower = import_space_clip.KnownTower('tiny-vit', TAG, 32, 16, 17)
    monkeypatch.setitem(import_space_clip.TOWERS, HUB, tower)


def their_tower(seed=0):
    """That tower as transformers builds it, of random weights."""
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_attention_heads=2, num_hidden_layers=12,
        image_size=64, patch_size=16, hidden_act='gelu',
    )  # fmt: skip
    return randomised(transformers.CLIPVisionModel(config), seed)


def their_decoder(structural=EARLY, seed=0):
    """A decoder state as their code names it, with statistics off their initial values."""
    torch.manual_seed(seed)
    head = build_head({'name': 'space_clip', 'structural': structural}, shared('tiny-vit').spec)
    rng = torch.Generator().manual_seed(seed)
    state = head.state_dict()
    for key, value in state.items():
        if 'running_mean' in key or key.endswith('bias'):
            value += 0.1 * torch.randn(value.shape, generator=rng)
        elif 'running_var' in key:
            value += torch.rand(value.shape, generator=rng)
    state['depth_prediction_head.3.bias'] += 1.0
    return state


def checkpoint_of(form, tower, decoder):
    """One of the shapes in which people have such files."""
    body = {k.removeprefix('vision_model.'): v for k, v in tower.state_dict().items()}
    older = {f'clip_vision_model.{k}': v for k, v in named(body, 'vision_model.').items()}
    newer = {f'clip_vision_model.{k}': v for k, v in body.items()}
    return {
        'train.py, transformers 5.2': {'model': older | decoder, 'optimizer': {}, 'epoch': 7},
        'train.py, transformers 5.3': {'model': newer | decoder, 'optimizer': {}, 'epoch': 7},
        'data parallel': {'model': {f'module.{k}': v for k, v in (older | decoder).items()}},
        'bare state': older | decoder,
        'state_dict': {'state_dict': newer | decoder},
    }[form]


FORMS = ['train.py, transformers 5.2', 'train.py, transformers 5.3', 'data parallel', 'bare state',
         'state_dict']  # fmt: skip


def imported(tmp_path, checkpoint, *flags, name='out'):
    """Import by the command line; the new file."""
    source, out = tmp_path / 'theirs.pt', tmp_path / f'{name}.safetensors'
    torch.save(checkpoint, source)
    code = main(['import-weights', 'space-clip', str(source), str(out), *map(str, flags)])
    assert code == 0
    return out


def expected_depth(tower, decoder, image, structural=EARLY):
    """Their network: transformers' tower, then the decoder from its description."""
    with torch.no_grad():
        seen = tower(image, output_hidden_states=True)
        grid = (image.shape[-2] // 16, image.shape[-1] // 16)
        maps = {
            k: tokens[:, -grid[0] * grid[1]:].mT.unflatten(2, grid)
            for k, tokens in enumerate(seen.hidden_states)
        }
        features = Features(maps, seen.pooler_output)
        return F.relu(reference(decoder, features, (12, 9, 6, 3), structural))


# --- the same answers ---------------------------------------------------------------------------


@pytest.mark.parametrize('form', FORMS)
def test_every_format_gives_the_same_self_contained_file(tmp_path, form):
    tower, decoder = their_tower(), their_decoder()
    out = imported(tmp_path, checkpoint_of(form, tower, decoder) | SIZE, '--embed-tower')
    model, image = load_model(out), picture((64, 64), count=2)
    assert model.card.tower_embedded and model.config.pretrained is None
    expected = expected_depth(tower, decoder, image)
    assert expected.std() > 0.01
    with torch.no_grad():
        found = model(image).depth_m
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * 10)


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
@quick_start()
def test_the_real_towers_answer_as_with_the_authors_code(tmp_path, kind):
    """ViT-B/16 of either family with random weights; also from an image, as PIL squashes it."""
    if kind == 'clip':
        config = transformers.CLIPVisionConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, patch_size=16,
        )  # fmt: skip
        tower = transformers.CLIPVisionModel(config).eval()
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    else:
        tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig()).eval()
        mean, std = (0.5,) * 3, (0.5,) * 3
    torch.manual_seed(3)
    decoder = build_head({'name': 'space_clip', 'structural': 'early'}, VIT_B).state_dict()
    decoder['depth_prediction_head.3.bias'] += 3.0
    checkpoint = checkpoint_of('train.py, transformers 5.2', tower, decoder)
    out = imported(tmp_path, checkpoint, '--embed-tower', '--camera', 'nyu', '--max-depth', 10)
    estimator = DepthEstimator.from_weights(out, RuntimeConfig('cpu', 'fp32', 'off'))
    assert estimator.config.depth_range_m == (0.001, 10.0)

    image = picture((224, 224))
    with torch.inference_mode():
        found = estimator.model(image).depth_m
    expected = expected_depth(tower, decoder, image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * 10)

    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    rgb = rgb.repeat(16, 0).repeat(16, 1)
    small = np.asarray(Image.fromarray(rgb).resize((224, 224), Image.BICUBIC), np.float32) / 255
    small = torch.from_numpy(small).permute(2, 0, 1)
    small = (small - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = expected_depth(tower, decoder, small[None])
    expected = F.interpolate(expected, (480, 640), mode='bilinear', align_corners=False)[0, 0]
    found = torch.from_numpy(estimator(rgb).depth_m)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_taps_and_range_come_from_the_checkpoints_own_config(tmp_path, caplog):
    """The layer study saves the decoder alone, its config and the hash of its tower."""
    tower, decoder = their_tower(), their_decoder(MIDDLE)
    config = {'structural_path_indices': list(MIDDLE), 'main_path_indices': [12, 9, 6, 3],
              'clip_model_name': HUB, 'clip_input_size': 64, 'max_depth': 80.0}
    theirs = {f'vision_model.{k}': v for k, v in stripped(tower).items()}
    checkpoint = {
        'model': decoder, 'epoch': 3, 'source': 'ema', 'config': config,
        'backbone_sha256': state_sha256(theirs),
    }  # fmt: skip
    out = imported(tmp_path, checkpoint, '--camera', '500,510,640,480')
    card = read_card(out)
    assert card.model['head']['structural'] == list(MIDDLE)
    assert card.model['depth_range_m'] == [0.001, 80.0]
    assert card.model['camera'] == {'fx_per_width': 500 / 640, 'fy_per_height': 510 / 480}
    assert (card.tower_embedded, card.model['pretrained']) == (False, TAG)
    assert (card.training['epoch'], card.training['source']) == (3, 'ema')
    assert 'early' not in caplog.text

    file = tmp_path / 'model.safetensors'
    save_file(theirs, file)
    model, image = load_model(out, tower_weights=file), picture((64, 64))
    with torch.no_grad():
        found = model(image).depth_m
    torch.testing.assert_close(
        found, expected_depth(tower, decoder, image, MIDDLE), rtol=0, atol=1e-4
    )
    another = tmp_path / 'another.safetensors'
    save_file(theirs | {'vision_model.pre_layrnorm.bias': torch.ones(32)}, another)
    with pytest.raises(WeightsError, match='its head was trained on another tower'):
        load_model(out, tower_weights=another)
    embedded = imported(
        tmp_path, checkpoint, '--embed-tower', '--tower-weights', file, name='whole'
    )
    assert load_model(embedded).card.tower_embedded


def stripped(tower):
    """A tower's state without the level that transformers 5.3 dropped."""
    return {k.removeprefix('vision_model.'): v for k, v in tower.state_dict().items()}


def test_a_full_checkpoint_without_embedding_names_its_tower_and_checks_it(tmp_path):
    """Robots that have the tower already need the small file only."""
    tower, decoder = their_tower(), their_decoder()
    checkpoint = checkpoint_of('bare state', tower, decoder)
    out = imported(tmp_path, {'model': checkpoint} | SIZE)
    assert out.stat().st_size < sum(v.nbytes for v in decoder.values()) * 1.01
    file = tmp_path / 'model.bin'
    torch.save(stripped(tower), file)
    assert load_model(out, tower_weights=file).config.pretrained == TAG
    torch.save(stripped(their_tower(seed=8)), file)
    with pytest.raises(WeightsError, match='another tower'):
        load_model(out, tower_weights=file)


def test_what_had_to_be_assumed_is_said(tmp_path, caplog):
    out = imported(tmp_path, {'model': their_decoder()} | SIZE)
    notes = read_card(out).training['notes']
    assert len(notes) == 3
    for note, words in zip(notes, ('taken for early', 'No --camera', 'will not be checked')):
        assert words in note and note in caplog.text
    assert read_card(out).tower_sha256 == ''


def test_the_record_holds_no_text_and_no_auxiliary_heads(tmp_path):
    out = imported(
        tmp_path, checkpoint_of('data parallel', their_tower(), their_decoder()) | SIZE,
        '--embed-tower',
    )  # fmt: skip
    with safe_open(out, 'pt') as file:
        assert not [k for k in file.keys() if 'aux' in k or 'text' in k]
        assert json.loads(file.metadata()[METADATA_KEY])['training']['imported'] == 'space-clip'


# --- refusals -----------------------------------------------------------------------------------


class Code:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def without(*starts):
    """A decoder that lacks what begins so."""
    return {k: v for k, v in their_decoder().items() if not k.startswith(starts)}


CASES = {
    'another network': (lambda: {'model': {'encoder.weight': torch.zeros(3)}},
                        'no SPACE-CLIP decoder .* no semantic projections'),
    'nothing': (lambda: {}, 'no SPACE-CLIP decoder'),
    'no film': (lambda: without('film'), 'it has no FiLM generators'),
    'first variant': (lambda: {k: v for k, v in their_decoder().items() if 'gate' not in k},
                      'it has no gates'),
    'half of it': (lambda: without('main_decoder_blocks.3', 'depth'), 'lacks|expected'),
    'a tensor more': (lambda: their_decoder() | {'extra.weight': torch.zeros(1)},
                      r'decoder has unknown 1 tensors \(extra.weight'),
    'a tensor of another shape': (
        lambda: their_decoder() | {'main_decoder_blocks.0.fusion_conv.0.weight': torch.zeros(9)},
        'decoder misfits 1 tensors'),
    'half a tower': (
        lambda: their_decoder() | {f'clip_vision_model.{k}': v for k, v in
                                   list(stripped(their_tower()).items())[:40]},
        'tower is incomplete|does not fit tower'),
    'another tower': (
        lambda: their_decoder() | {f'clip_vision_model.{k}': v for k, v in
                                   stripped(their_tower()).items()} | {
            'clip_vision_model.embeddings.patch_embedding.weight': torch.zeros(32, 3, 8, 8)},
        r'its tower \(width, patch, positions = \(32, 8, 17\)\) is none of'),
    'an unknown tower': (lambda: {'model': their_decoder(), 'config': {'clip_model_name': 'x/y'}},
                         "trained on 'x/y', which is not known here"),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_what_cannot_be_imported_is_one_line_and_writes_nothing(tmp_path, capsys, case):
    make, message = CASES[case]
    source, out = tmp_path / 'theirs.pt', tmp_path / 'out.safetensors'
    torch.save(SIZE | make(), source)
    code = main(['import-weights', 'space-clip', str(source), str(out)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 1 and len(lines) == 1 and not out.exists()
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize(('flags', 'message'), [
    (['--camera', 'phone'], "--camera 'phone': expected nyu, kitti or FX,FY,W,H"),
    (['--camera', '500,500,0,480'], "--camera '500,500,0,480': expected"),
    (['--camera=-500,500,640,480'], 'expected a positive number'),
    (['--max-depth', '-1'], 'depth_range_m = (0.001, -1.0)'),
    (['--taps', 'middle'], 'was trained with layers (2, 1, 0)'),
    (['--tower', 'x/y'], "--tower 'x/y': expected one of openai/clip-vit-base-patch16"),
    (['--embed-tower', '--tower-weights', 'nowhere.bin'], 'nowhere.bin: no such file'),
])  # fmt: skip
def test_flags_that_do_not_fit_are_one_line(tmp_path, capsys, flags, message):
    source, out = tmp_path / 'theirs.pt', tmp_path / 'out.safetensors'
    config = {'structural_path_indices': [2, 1, 0], 'clip_input_size': 64,
              'clip_model_name': HUB}  # fmt: skip
    torch.save({'model': their_decoder(), 'config': config}, source)
    assert main(['import-weights', 'space-clip', str(source), str(out), *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0] and not out.exists()


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    path = tmp_path / 'theirs.pt'
    torch.save({'model': their_decoder(), 'hook': Code(tmp_path / 'ran')}, path)
    with pytest.raises(WeightsError, match='more than tensors and plain values'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


def test_numbers_of_numpy_in_a_training_log_do_no_harm(tmp_path):
    path = tmp_path / 'last.pt'
    torch.save({'model': {}, 'best_abs_rel': np.float64(0.12), 'epoch': np.int64(3)}, path)
    assert read_checkpoint(path)['best_abs_rel'] == 0.12


@pytest.mark.parametrize(('write', 'message'), [
    (lambda p: None, 'no such file'),
    (lambda p: p.write_bytes(b'PK\x03\x04' + b'0' * 100), 'not read. It is damaged'),
    (lambda p: torch.save([1, 2], p), 'holds a list, expected a mapping'),
])  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, write, message):
    path = tmp_path / 'theirs.pt'
    write(path)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_cameras_have_names_and_numbers():
    assert training_camera(None) is None
    assert training_camera('500,480,640,480') == TrainingCamera(500 / 640, 1.0)
    assert training_camera('nyu').focal == pytest.approx(0.9367, abs=1e-3)
    with pytest.raises(ConfigError):
        training_camera('1,2,3')
