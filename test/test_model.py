"""Weights files: what is written comes back bit for bit, and what is not ours is refused."""

from dataclasses import asdict, replace
import json
import os
from pathlib import Path
import pickle
import resource

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import torch
from towers import picture, TAG
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.heads.registry import HEADS
from vlm_depth_ros.core.model import (
    DepthModel,
    find_weights,
    load_model,
    METADATA_KEY,
    read_card,
    save_model,
    shipped_weights,
)

SLIM = {'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4}
CONFIG = ModelConfig(
    'tiny-vit', SLIM, TAG, (64, 96), (0.1, 12.0), TrainingCamera(0.8, 1.1)
)  # fmt: skip
POCKET = replace(CONFIG, tower='pocket-tower', pretrained=None)


def made(config=CONFIG, seed=0):
    """A model of random weights, its tower frozen."""
    torch.manual_seed(seed)
    model = DepthModel(config)
    model.freeze_tower()
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    """A good file with its tower inside, and the model in it."""
    model, path = made(), tmp_path / 'good.safetensors'
    save_model(path, model, name='good', embed_tower=True)
    return path, model


def contents(path):
    """Tensors and record of a weights file."""
    with safe_open(path, 'pt') as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
        return tensors, json.loads(file.metadata()[METADATA_KEY])


def rewrite(path, tensors, record):
    """Write a file of our form with other content."""
    save_file(tensors, path, {METADATA_KEY: json.dumps(record)})


# --- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize('head', [SLIM, *({'name': name} for name in HEADS)], ids=str)
@pytest.mark.parametrize('config', [CONFIG, POCKET], ids=lambda c: c.tower)
def test_a_model_comes_back_bit_for_bit(tmp_path, config, head):
    is_picky = head['name'] in ('depthclip', 'depthblip2')
    if is_picky or (head['name'] == 'moa_depthclip' and config is POCKET):
        pytest.skip(f'{head["name"]} is not made for {config.tower}')
    model, image = made(replace(config, head=head)), picture((64, 96), count=2)
    path = tmp_path / 'model.safetensors'
    save_model(path, model, name='x', embed_tower=True)
    found = load_model(path)
    with torch.no_grad():
        assert torch.equal(found(image).depth_m, model(image).depth_m)
    assert found.backbone.state_sha256() == model.backbone.state_sha256()
    ours, theirs = model.head.state_dict(), found.head.state_dict()
    assert set(theirs) == {k for k in ours if not k.startswith('aux_')}
    assert all(torch.equal(v, ours[k]) and v.dtype == ours[k].dtype for k, v in theirs.items())


def test_a_file_says_everything_about_itself(tmp_path):
    """The node needs nothing else, and cannot contradict it."""
    path = tmp_path / 'm.safetensors'
    written = save_model(
        path, made(), name='mine', embed_tower=True, licence='research', notice='Mind the step.',
        training={'seed': 3, 'rows': [0, 158]},
    )  # fmt: skip
    card = read_card(path)
    assert asdict(card) == json.loads(json.dumps(asdict(written)))
    assert (card.name, card.licence, card.notice) == ('mine', 'research', 'Mind the step.')
    assert card.training == {'seed': 3, 'rows': [0, 158]}
    assert load_model(path).card == card
    config = load_model(path).config
    assert (config.camera, config.input_hw) == (CONFIG.camera, (64, 96))
    assert (config.depth_range_m, config.preprocess) == ((0.1, 12.0), 'squash-bicubic-v1')


def test_a_loaded_model_is_ready_to_run(saved):
    """Evaluation mode, tower frozen, no auxiliary heads."""
    model = load_model(saved[0])
    assert not model.training and not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert len(model.head.aux_depth_heads) == 0


def test_training_only_heads_stay_out_of_the_file(saved):
    tensors, record = contents(saved[0])
    assert not [k for k in tensors if 'aux' in k]
    assert record['model']['head']['aux_heads'] is False


def test_a_file_without_its_tower_takes_it_from_a_local_file(tmp_path, monkeypatch):
    """Small files beside one tower; the tower's hash ties them."""
    model, path = made(), tmp_path / 'head.safetensors'
    save_model(path, model, name='head', embed_tower=False)
    assert not [k for k in contents(path)[0] if k.startswith('tower.')]
    tower = {f'visual.{k}': v.clone() for k, v in model.backbone.tower.state_dict().items()}
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    torch.save(tower, tmp_path / f'tiny-vit.{TAG}.pt')
    image = picture((64, 96))
    with torch.no_grad():
        assert torch.equal(load_model(path)(image).depth_m, model(image).depth_m)

    other = made(seed=1).backbone.tower.state_dict()
    torch.save({f'visual.{k}': v for k, v in other.items()}, tmp_path / f'tiny-vit.{TAG}.pt')
    with pytest.raises(WeightsError, match="trained on another tower .* Use the tower 'tiny-vit'"):
        load_model(path)


def test_a_published_tower_goes_into_a_file_at_another_input_size_too(tmp_path):
    """Its positions are fitted then, so the hash in the record is not that of the published."""
    torch.manual_seed(1)
    published = DepthModel(replace(CONFIG, input_hw=(64, 64))).backbone
    model, path = made(), tmp_path / 'other.safetensors'
    model.backbone.load_native_state(published.tower.state_dict(), 'published')
    assert model.backbone.frozen_sha256() == published.frozen_sha256()
    save_model(path, model, name='other', embed_tower=True)
    image = picture(CONFIG.input_hw)
    assert torch.equal(load_model(path)(image).depth_m, model(image).depth_m)


def test_the_estimators_memory_layout_does_not_reach_the_file(tmp_path):
    model, image = made(POCKET), picture((64, 96))
    with torch.no_grad():
        expected = model(image).depth_m
    save_model(tmp_path / 'm', model.to(memory_format=torch.channels_last), name='', embed_tower=1)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / 'm')(image).depth_m, expected)


# --- the tower is frozen ------------------------------------------------------------------------


@pytest.mark.parametrize('config', [CONFIG, POCKET], ids=lambda c: c.tower)
def test_training_the_head_leaves_the_frozen_tower_as_it_was(config):
    """TFI-FB: same hash, no gradient; also its running statistics, whatever mode is asked for."""
    model = made(config)
    before, head = model.backbone.state_sha256(), [p.clone() for p in model.head.parameters()]
    model.train()
    assert model.head.training and not any(m.training for m in model.backbone.modules())
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(2):
        loss = (model(picture((64, 96), 2, seed)).depth_m - 2.0).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.backbone.state_sha256() == before
    assert all(p.grad is None for p in model.backbone.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(head, model.head.parameters()))


def test_a_tower_that_is_not_frozen_trains():
    """Stage one of `pocket`."""
    torch.manual_seed(0)
    model = DepthModel(POCKET).train()
    before = model.backbone.state_sha256()
    model(picture((64, 96), 2)).depth_m.mean().backward()
    assert model.backbone.training and model.backbone.state_sha256() != before
    assert any(p.grad is not None for p in model.backbone.parameters())


# --- strictness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(('change', 'message'), [
    (lambda t, r: t.pop('head.depth_prediction_head.3.bias'),
     r'head lacks 1 tensors \(depth_prediction_head.3.bias'),
    (lambda t, r: t.pop('tower.ln_post.bias'),
     r'does not fit tower .*: 1 tensors differ \(ln_post.bias'),
    (lambda t, r: [t.pop(k) for k in list(t) if k.startswith('tower.')],
     'has 0 tower tensors, but its record says that the tower is embedded'),
    (lambda t, r: t.update({'head.more': torch.zeros(1)}), r'has unknown 1 tensors \(more'),
    (lambda t, r: t.update({'optimizer': torch.zeros(1)}), "unexpected tensor 'optimizer'"),
    (lambda t, r: t.update({'head.depth_prediction_head.3.bias': torch.zeros(2)}),
     r'head misfits 1 tensors \(depth_prediction_head.3.bias'),
    (lambda t, r: t['tower.ln_post.bias'].add_(1e-3), 'was trained on another tower'),
    (lambda t, r: r.update(tower_embedded=False), 'tower tensors, but its record says'),
    (lambda t, r: r.update(tower_sha256='0' * 64), r'another tower \(SHA-256 000000000000…, here'),
    (lambda t, r: r.update(format=2), 'format 2, this version reads 1. Update the package'),
    (lambda t, r: r.update(colour='red'), "record cannot be read .*'colour' is not an option"),
    (lambda t, r: r.pop('tower_sha256'), 'record cannot be read'),
    (lambda t, r: r.update(model=5), 'cannot be built: .*expected a mapping'),
    (lambda t, r: r['model'].update(tower='nobody'), "cannot be built: tower 'nobody' is unknown"),
    (lambda t, r: r['model'].update(head={'name': 'magic'}), "'magic' is unknown"),
    (lambda t, r: r['model'].update(head={}), 'cannot be built: head = {}'),
    (lambda t, r: r['model'].update(input_hw=[65, 96]), r'input size \(65, 96\) does not fit'),
    (lambda t, r: r['model'].update(preprocess='crop-v1'), "preprocess 'crop-v1' is unknown"),
    (lambda t, r: r['model'].update(depth_range_m=[3, 2, 1]), 'depth_range_m'),
    (lambda t, r: r['model'].update(pretrained='x'), "no pretrained tag 'x'"),
], ids=lambda p: p[:30] if isinstance(p, str) else '')  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(saved, change, message):
    """Each with its reason and the file's name; nothing is filled in."""
    path, _ = saved
    tensors, record = contents(path)
    change(tensors, record)
    rewrite(path, tensors, record)
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('share', [0.0, 1e-4, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    path, _ = saved
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match='not a readable safetensors file .*truncated'):
        load_model(path)


@pytest.mark.parametrize('metadata', [None, {'format': 'pt'}, {METADATA_KEY: 'not json'},
                                      {METADATA_KEY: '[1, 2]'}, {METADATA_KEY: '{}'}])  # fmt: skip
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    path = tmp_path / 'foreign.safetensors'
    save_file({'head.x': torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match='foreign.safetensors: (a safet|its record|form)'):
        load_model(path)


class Planted:
    """Unpickled, it would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize('name', ['weights.pt', 'weights.safetensors'])
@pytest.mark.parametrize('write', [
    lambda bomb, path: torch.save({'model': bomb}, path),
    lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
], ids=['torch', 'pickle'])  # fmt: skip
def test_a_pickle_is_refused_and_not_executed(tmp_path, name, write):
    flag, path = tmp_path / 'executed', tmp_path / name
    write(Planted(f'touch {flag}'), path)
    with pytest.raises(WeightsError, match='not a readable safetensors file .* import-weights'):
        load_model(path)
    assert not flag.exists()


def test_a_missing_file_names_what_is_shipped(tmp_path):
    with pytest.raises(WeightsError, match=r"weights '.*/no.safetensors': neither a file nor"):
        find_weights(tmp_path / 'no.safetensors')
    with pytest.raises(WeightsError, match='neither a file'):
        find_weights(tmp_path)


@pytest.mark.parametrize('name', ['a' * 300, '~nobody_of_this_name/a', 'a\0b'])
def test_a_name_that_no_file_can_have_is_as_missing_as_any_other(name):
    with pytest.raises(WeightsError, match='neither a file nor a shipped name'):
        find_weights(name)


# --- writing ------------------------------------------------------------------------------------


def leftovers(folder):
    """Names in a folder."""
    return sorted(p.name for p in Path(folder).iterdir())


def test_writing_replaces_the_old_file_and_leaves_nothing_else(saved):
    path, _ = saved
    save_model(path, made(seed=1), name='new', embed_tower=True)
    assert leftovers(path.parent) == ['good.safetensors']
    assert read_card(path).name == 'new'


def test_a_full_disk_keeps_the_good_file_and_leaves_no_other(saved):
    """A limit on the size of files stands in for the end of the disk."""
    path, _ = saved
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WeightsError, match='good.safetensors: could not be written .* Free'):
            save_model(path, made(seed=1), name='new', embed_tower=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(path.parent) == ['good.safetensors']
    assert load_model(path).card.name == 'good'


@pytest.mark.parametrize('target', ['a_file/model.safetensors', 'a_folder'])
def test_a_place_that_cannot_be_written_is_a_weights_error(tmp_path, target):
    (tmp_path / 'a_file').write_text('in the way')
    (tmp_path / 'a_folder').mkdir()
    with pytest.raises(WeightsError, match=f'{target}: could not be written'):
        save_model(tmp_path / target, made(), name='x', embed_tower=True)
    assert leftovers(tmp_path) == ['a_file', 'a_folder']


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / 'a' / 'b' / 'm.safetensors'
    save_model(path, made(), name='x', embed_tower=True)
    assert load_model(path).card.name == 'x'


# --- pocket -------------------------------------------------------------------------------------


@pytest.mark.skipif('pocket' not in shipped_weights(), reason='no assets/pocket.safetensors')
def test_pocket_needs_nothing_and_says_what_it_is():
    """Self-contained, small, honest about its licence."""
    path = find_weights('pocket')
    card = read_card(path)
    assert card.tower_embedded and card.notice and card.licence != 'not stated'
    assert path.stat().st_size <= 16e6
    model = load_model('pocket')
    height, width = model.config.input_hw
    assert height >= 192 and width >= 256
    assert model.config.camera is not None
    with torch.no_grad():
        assert (model(picture((height, width))).depth_m > 0).all()


def test_a_model_for_an_unknown_preprocessing_is_not_built():
    with pytest.raises(ConfigError, match="preprocess 'x' is unknown here"):
        DepthModel(replace(CONFIG, preprocess='x'))
