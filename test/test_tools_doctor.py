"""``vlm-depth doctor``: a sound file is ``ok``; what is wrong with another is found and said."""

import json
import math
from pathlib import Path
import pickle
import subprocess
import sys

from desk_sets import write_weights
from open_clip.transformer import TextTransformer
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import torch
from torch import nn
from towers import TAG
from vlm_depth_ros.core.config import ModelConfig, TrainingCamera
from vlm_depth_ros.core.model import (
    DepthModel,
    HUGGING_FACE,
    load_model,
    METADATA_KEY,
    save_model,
)
from vlm_depth_ros.core.tower_naming import hugging_face_clip_sha256
from vlm_depth_ros.tools import cli, doctor

ROOT = Path(__file__).parent.parent
LAST = 'head.depth_prediction_head.3'
SLIM = {'name': 'space_clip', 'widths': (8, 8, 8, 8), 'film_width': 8, 'output_width': 4}


@pytest.fixture(autouse=True)
def quiet_places(tmp_path, monkeypatch):
    """No towers to be found, and a narrow terminal."""
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path / 'towers'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('COLUMNS', '80')


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A sound file, in a process where only other tests may have left text models."""
    others, look = set(doctor.text_readers()), doctor.text_readers
    monkeypatch.setattr(doctor, 'text_readers', lambda: sorted(set(look()) - others))
    return write_weights(tmp_path / 'good.safetensors')


def changed(path, change, **record):
    """The same file after `change` of its tensors (in place) and with other entries in it."""
    with safe_open(path, 'pt') as opened:
        tensors = {k: opened.get_tensor(k) for k in opened.keys()}
        card = json.loads(opened.metadata()[METADATA_KEY])
    change(tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps(card | record)})
    return path


def examined(capsys, *args):
    """Exit code, what is printed as one line, and what stands in the JSON."""
    json_file = Path(args[0]).with_suffix('.json')
    code = cli.main(['doctor', *map(str, args), '--json', str(json_file)])
    return code, ' '.join(capsys.readouterr().out.split()), json.loads(json_file.read_text())


# --- a sound file -------------------------------------------------------------------------------


def test_the_shipped_file_is_ok_in_a_real_process():
    command = [sys.executable, '-m', 'vlm_depth_ros.tools.cli', 'doctor', 'pocket']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    said = ' '.join(done.stdout.split())
    assert said.endswith(' ok') and 'no module in this process reads text' in said
    assert '63.3 degrees across, 49.6 down' in said and '0.1 to 10 m' in said
    assert 'research use only' in said and 'rows 0:159 318:795' in said
    assert 'as recorded' in said and ', frozen' in said
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80


def test_findings_of_a_sound_file(file, capsys):
    code, said, found = examined(capsys, file)
    assert code == 0 and said.endswith(' ok') and found['wrong'] == []
    assert found['tower_sha256']['here'] == [found['tower_sha256']['recorded']]
    assert found['broken_tensors'] == [] and found['text_readers'] == []
    model = load_model(file)
    assert found['parameters'] == {
        'head': sum(p.numel() for p in model.head.parameters()),
        'tower': sum(p.numel() for p in model.backbone.parameters()),
        'tower_unfrozen': 0,
    }
    assert found['depth_range_m'] == [0.1, 10.0] and found['size_mb'] > 1
    for name in ('grey', 'noise'):
        answer = found['answers'][name]
        assert answer['median_m'] > 0 and answer['valid_share'] == 1 and answer['latency_ms'] > 0
    assert 'training no record' in said


def test_fields_of_view_are_those_of_a_pinhole():
    across, down = doctor.field_of_view_deg(TrainingCamera(0.5, 0.5 * math.sqrt(3)))
    assert across == pytest.approx(90) and down == pytest.approx(60)


def test_a_file_without_camera_says_what_that_means(tmp_path, file, capsys):
    with safe_open(file, 'pt') as opened:
        model = json.loads(opened.metadata()[METADATA_KEY])['model']
    changed(file, lambda tensors: None, model=model | {'camera': None})
    code, said, found = examined(capsys, file)
    assert code == 0 and found['camera'] is None
    assert 'camera not known: depth is not corrected for the focal length' in said


def test_a_record_of_any_kind_is_readable(file, capsys):
    changed(file, lambda tensors: None, training={
        'imported': 'space-clip', 'epoch': None, 'notes': ['No [camera] given.', 'Taps: early.'],
        'sets': [{'folder': 'a', 'rows': [[0, 5], [7, 9]]}], 'cache_hw': [240, 320],
    })  # fmt: skip
    _, said, _ = examined(capsys, file)
    assert 'notes No [camera] given. Taps: early.' in said
    assert 'sets folder a, rows 0:5 7:9' in said and 'cache_hw 240 320' in said


# --- what can be wrong --------------------------------------------------------------------------


def test_nan_and_infinity_are_found_by_name(file, capsys):
    def spoil(tensors):
        tensors['tower.trunk.conv_stem.weight'][0, 0, 0, 0] = math.nan
        tensors[f'{LAST}.bias'][0] = math.inf

    model = load_model(file)
    with torch.no_grad():
        model.backbone.tower.trunk.conv_stem.weight[0, 0, 0, 0] = math.nan
    changed(file, spoil, tower_sha256=model.backbone.frozen_sha256())
    code, said, found = examined(capsys, file)
    assert code == 1 and 'ok' not in said.split()[-1:]
    assert found['broken_tensors'] == ['backbone.tower.trunk.conv_stem.weight', f'{LAST}.bias']
    assert f'wrong: NaN or infinity in 2 tensors: backbone.tower.trunk.conv_stem.weight, {LAST}' \
        in said
    assert 'wrong: no pixel of the answer to grey is a depth.' in said


def test_a_changed_tower_is_found(file, capsys):
    changed(file, lambda tensors: tensors['tower.trunk.conv_stem.weight'].add_(1e-6))
    code, said, found = examined(capsys, file)
    assert code == 1 and 'wrong: ' in said and 'trained on another tower' in said
    assert found['tower'] == 'pocket-tower' and 'answers' not in found


def test_a_tower_that_the_loader_let_pass_is_compared_again(file, capsys, monkeypatch):
    def careless(*args, **options):
        model = load_model(*args, **options)
        with torch.no_grad():
            model.backbone.tower.trunk.conv_stem.weight.add_(1e-6)
        return model

    monkeypatch.setattr(doctor, 'load_model', careless)
    code, said, found = examined(capsys, file)
    assert code == 1 and found['tower_sha256']['same'] is False
    assert 'SHA-256 differs' in said


@pytest.mark.parametrize(('change', 'message'), [
    (lambda t: t.pop(f'{LAST}.weight'), 'lacks 1 tensors'),
    (lambda t: t.update({'head.more': torch.zeros(1)}), 'has unknown 1 tensors'),
    (lambda t: t.update({f'{LAST}.bias': torch.zeros(2)}), 'misfits 1 tensors'),
    (lambda t: t.pop('tower.trunk.conv_stem.weight'), 'does not fit tower'),
], ids=['missing', 'unknown', 'shape', 'half a tower'])  # fmt: skip
def test_wrong_tensors_are_said_beside_what_the_file_claims(change, message, file, capsys):
    code, said, found = examined(capsys, changed(file, change))
    assert code == 1 and message in said and 'untrained' in said
    assert len(found['wrong']) == 1 and message in found['wrong'][0]


def test_a_dead_output_is_found(file, capsys):
    with safe_open(file, 'pt') as opened:
        model = json.loads(opened.metadata()[METADATA_KEY])['model']
    model['head']['output_activation'] = 'relu'
    changed(file, lambda t: t[f'{LAST}.bias'].fill_(-1e6), model=model)
    code, said, found = examined(capsys, file)
    assert code == 1 and found['answers']['noise']['median_m'] is None
    assert 'sees noise nothing, 0.0% valid' in said
    assert 'wrong: no pixel of the answer to noise is a depth.' in said


def test_a_network_that_does_not_look_is_found(file, capsys):
    code, said, _ = examined(capsys, changed(file, lambda t: t[f'{LAST}.weight'].zero_()))
    assert code == 1
    assert 'wrong: grey and noise get the same depth: the network does not see its input.' in said


@pytest.mark.parametrize('content', [
    b'', b'no weights at all', pickle.dumps({'state_dict': {}}), 'half', 'foreign', 'record',
], ids=['empty', 'text', 'pickle', 'truncated', 'foreign', 'record'])  # fmt: skip
def test_what_is_no_weights_file_gets_one_line(content, file, capsys):
    if content == 'half':
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif content == 'foreign':
        save_file({'visual.conv1.weight': torch.zeros(1)}, file)
    elif content == 'record':
        changed(file, lambda tensors: None, model={'tower': 'pocket-tower', 'towel': 1})
    else:
        file.write_bytes(content)
    assert cli.main(['doctor', str(file)]) == 1
    answer = capsys.readouterr()
    assert answer.out == '' and len(answer.err.splitlines()) == 1
    assert answer.err.startswith(f'vlm-depth doctor: {file}: ')


def test_a_missing_file_gets_one_line(capsys):
    assert cli.main(['doctor', 'pockets']) == 1
    said = capsys.readouterr().err
    assert "weights 'pockets': neither a file nor a shipped name (pocket" in said


# --- the tower lies elsewhere -------------------------------------------------------------------


def test_a_tower_that_is_not_here_is_asked_for_and_then_taken(file, tmp_path, capsys):
    model = DepthModel(ModelConfig('tiny-vit', SLIM, TAG, (64, 64)))
    path = tmp_path / 'lean.safetensors'
    save_model(path, model, name='lean', embed_tower=False)
    code, said, found = examined(capsys, path)
    assert code == 1 and f"weights '{TAG}'" in said
    assert f'tiny-vit.{TAG}.safetensors' in found['wrong'][0] and 'Copy' in found['wrong'][0]

    tower = tmp_path / 'somewhere.safetensors'
    state = model.backbone.tower.state_dict()
    save_file({f'visual.{k}': v for k, v in state.items()}, tower)
    code, said, found = examined(capsys, path, '--tower-weights', tower)
    assert code == 0 and said.endswith(' ok') and found['tower_sha256']['same'] is True

    # An imported head may know its tower by transformers' hash, or not at all.
    theirs = HUGGING_FACE + min(hugging_face_clip_sha256(state))
    changed(path, lambda tensors: None, tower_sha256=theirs)
    code, _, found = examined(capsys, path, '--tower-weights', tower)
    assert code == 0 and found['tower_sha256']['same'] is True
    changed(path, lambda tensors: None, tower_sha256='')
    code, said, found = examined(capsys, path, '--tower-weights', tower)
    assert code == 0 and found['tower_sha256']['same'] is None and 'not compared' in said


# --- no text ------------------------------------------------------------------------------------


def words():
    return nn.Embedding(20_000, 4)


def open_clip_text():
    return TextTransformer(
        context_length=8, vocab_size=50, width=16, heads=2, layers=1, output_dim=8
    )


def transformers_text():
    transformers = pytest.importorskip('transformers')
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


@pytest.mark.parametrize(('build', 'name'), [
    (words, 'torch.nn.modules.sparse.Embedding'),
    (open_clip_text, 'open_clip.transformer.TextTransformer'),
    (transformers_text, 'CLIPTextModel'),
])  # fmt: skip
def test_whatever_reads_text_is_found_while_it_lives(build, name, tmp_path, capsys):
    reader = build()
    assert any(name in found for found in doctor.text_readers())
    code, said, _ = examined(capsys, write_weights(tmp_path / 'good.safetensors'))
    assert code == 1 and 'wrong: modules that read text are in the process' in said
    assert name in said
    del reader


def test_an_image_tower_of_hugging_face_is_no_reader_of_text():
    transformers = pytest.importorskip('transformers')
    before = set(doctor.text_readers())
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    tower = transformers.CLIPVisionModel(config)
    assert set(doctor.text_readers()) <= before and tower is not None
