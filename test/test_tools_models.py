"""``vlm-depth models``: true counts, true places, and what to copy where, for people offline."""

import json
from pathlib import Path
import re

import pytest
from safetensors.torch import save_file
import torch
from towers import build, TAG
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.heads.linear import LinearHead
from vlm_depth_ros.core.heads.registry import build_head, HEADS
from vlm_depth_ros.core.towers import check_activation, tower_files, tower_names
from vlm_depth_ros.tools import cli, models


@pytest.fixture(autouse=True)
def empty_places(tmp_path, monkeypatch):
    """A towers folder and a hub cache with nothing in them, and a narrow terminal."""
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path / 'towers'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('COLUMNS', '80')


def told(capsys, *args):
    """What the verb prints, and the same as one line."""
    assert cli.main(['models', *map(str, args)]) == 0
    text = capsys.readouterr().out
    return text, ' '.join(text.split())


# --- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['pocket-tower', 'tiny-vit', 'tiny-siglip', 'tiny-resnet',
                                  'tiny-fastvit', 'MobileCLIP2-S0'])  # fmt: skip
def test_counts_are_those_of_the_network_when_it_is_built(name):
    backbone, told_of = build(name), models.describe_tower(name)
    assert told_of['frozen'] == sum(p.numel() for p in backbone.parameters())
    assert told_of['widths'] == backbone.spec.widths
    assert told_of['strides'] == backbone.spec.strides
    for head in HEADS:
        if 'refused' not in told_of['heads'][head]:
            built = build_head({'name': head}, backbone.spec)
            trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
            assert told_of['heads'][head]['trained'] == trained
            assert told_of['heads'][head]['layers'] == list(built.layers)


@pytest.mark.parametrize(('name', 'millions', 'input_hw'), [
    ('ViT-B-32-quickgelu', 87.8, (224, 224)), ('ViT-B-16-quickgelu', 86.2, (224, 224)),
    ('ViT-L-14-quickgelu', 304.0, (224, 224)), ('RN50-quickgelu', 38.3, (224, 224)),
    ('ViT-B-16-SigLIP', 92.9, (224, 224)), ('ViT-B-16-SigLIP2', 92.9, (224, 224)),
    ('MobileCLIP-S1', 21.5, (256, 256)), ('MobileCLIP2-S0', 11.4, (256, 256)),
    ('pocket-tower', 2.5, (256, 256)),
])  # fmt: skip
def test_towers_have_their_published_size(name, millions, input_hw):
    tower = models.describe_tower(name)
    assert round(tower['frozen'] / 1e6, 1) == millions and tower['input_hw'] == input_hw
    assert name in models.TOWERS


def test_space_clip_has_the_papers_number_of_trained_parameters():
    head = models.describe_tower('ViT-B-16-quickgelu')['heads']['space_clip']
    assert head['trained'] == 12_050_996
    assert head['of_them_kept'] == 11_663_249


def test_the_list_costs_no_memory_of_a_network():
    models.describe_tower('tiny-vit')  # imports what building needs
    Path('/proc/self/clear_refs').write_text('5')  # The peak starts anew: proc_pid_clear_refs(5).
    before_mb = peak_mb()
    found = models.list_models()
    assert sum(tower['frozen'] for tower in found['towers'].values()) > 700e6
    assert peak_mb() - before_mb < 100  # One ViT-L/14 in float32 takes 1216.


def peak_mb():
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024


# --- what there is and what must be copied ------------------------------------------------------


@pytest.mark.parametrize(('name', 'tag'), [(n, t) for n, (t, _) in models.TOWERS.items() if t])
def test_each_tower_is_named_with_weights_that_fit_it(name, tag):
    check_activation(name, tag)
    weights = {w['tag']: w for w in models.describe_tower(name)['weights']}
    assert weights[tag]['page'].startswith('https://huggingface.co/')
    assert weights[tag]['licence'].startswith(models.TOWERS[name][1])
    others = [w['licence'] for t, w in weights.items() if t != tag]
    assert set(others) <= {'see the model card'}


def test_a_file_copied_as_told_is_the_one_that_is_loaded(tmp_path):
    weights = models.describe_tower('tiny-vit')['weights'][0]
    assert weights['tag'] == TAG and weights['here'] is None
    assert weights['page'] == 'https://huggingface.co/vlm-depth-test/tiny-vit'
    (tmp_path / 'towers').mkdir()
    source = build('tiny-vit', seed=3)
    state = {f'visual.{k}': v for k, v in source.tower.state_dict().items()}
    save_file(state, weights['copy_to'])
    assert models.describe_tower('tiny-vit')['weights'][0]['here'] == weights['copy_to']
    backbone = Backbone('tiny-vit', pretrained=TAG)
    backbone.load_published(TAG)
    assert backbone.frozen_sha256() == source.frozen_sha256()


def test_an_earlier_download_is_found(tmp_path):
    repository = tmp_path / 'hub' / 'models--vlm-depth-test--tiny-vit'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text('abc')
    file = repository / 'snapshots' / 'abc' / 'open_clip_model.safetensors'
    file.parent.mkdir(parents=True)
    save_file({'visual.x': torch.zeros(1)}, file)
    assert models.describe_tower('tiny-vit')['weights'][0]['here'] == str(file)


def test_a_pickled_file_keeps_the_suffix_by_which_it_is_read():
    (file,) = tower_files('ViTamin-S')
    assert file.name == 'pytorch_model.bin'
    assert file.copy_to.name == 'ViTamin-S.datacomp1b.bin'


# --- what is printed ----------------------------------------------------------------------------


def test_the_list_says_what_a_robot_without_network_needs(capsys, tmp_path):
    text, line = told(capsys, '--json', tmp_path / 'models.json')
    found = json.loads((tmp_path / 'models.json').read_text())
    assert found['towers'].keys() == models.TOWERS.keys()
    assert found['architectures'] == tower_names()
    for name, (tag, licence) in models.TOWERS.items():
        assert name in text and licence in text
        if tag:
            assert f'{name}.{tag}.safetensors' in text
    assert f'  {tmp_path}/towers\n' in text
    assert 'https://huggingface.co/timm/ViT-B-16-SigLIP2\n' in text
    assert 'pocket: the tower is inside the file' in line
    assert 'not a vision-language tower' in line
    assert 'non-commercial research only' in line


def test_tables_and_sentences_fit_eighty_columns(capsys, tmp_path):
    text, _ = told(capsys)
    long = [row for row in text.splitlines() if len(row) > 80]
    assert [row for row in long if 'https://' not in row and str(tmp_path) not in row] == []
    assert '…' not in text


def test_one_tower_is_told_with_its_layers_heads_and_files(capsys, tmp_path):
    text, line = told(capsys, 'RN50-quickgelu', '--json', tmp_path / 'tower.json')
    assert 'widths 64 256 512 1024 2048' in line and 'strides 4 4 8 16 32' in line
    assert 'any size in steps of 32 pixels' in line and 'embedding 1024' in line
    assert '14,346,292' in line and 'RN50-quickgelu.cc12m.safetensors' in line
    assert json.loads((tmp_path / 'tower.json').read_text())['has_class_token'] is False


def test_a_tower_without_projection_says_so(capsys):
    _, line = told(capsys, 'pocket-tower')
    assert 'embedding none: no trained projection' in line
    assert 'none; a weights file must bring this tower along' in line


def test_a_head_that_refuses_the_tower_says_why(capsys, monkeypatch):
    class Picky(LinearHead):
        """Wants a tower of 99 blocks."""

        def __init__(self, config, spec):
            super().__init__(config, spec)
            require(spec.num_layers == 99, f'head picky: tower {spec.tower!r} is too short.')

    monkeypatch.setitem(HEADS, 'picky', Picky)
    _, line = told(capsys, 'tiny-vit')
    assert "not picky: head picky: tower 'tiny-vit' is too short." in line
    assert models.describe_tower('tiny-vit')['heads']['linear']['trained'] > 0


def test_all_names_every_architecture(capsys):
    text, _ = told(capsys, '--all')
    assert set(text.split()) == set(tower_names())
    assert {'pocket-tower', 'ViT-B-16-SigLIP', 'MobileCLIP2-S4'} < set(tower_names())


@pytest.mark.parametrize(('name', 'hint'), [
    ('ViT-B16-SigLIP', 'Did you mean ViT-B-16-SigLIP'),
    ('no such thing', 'is unknown. Expected one that vlm-depth models --all names.'),
])  # fmt: skip
def test_an_unknown_tower_gets_one_line_with_the_nearest_names(name, hint, capsys):
    assert cli.main(['models', name]) == 1
    said = capsys.readouterr().err
    assert hint in said and len(said.splitlines()) == 1


def test_one_tower_and_all_of_them_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['models', 'ViT-B-32', '--all'])
    assert end.value.code == 2
