"""Recipes that wait for a download train here for two steps, on the real architectures.

Their towers have random weights, put in here and nowhere else: by themselves they are refused.
"""

from dataclasses import replace
import math
from pathlib import Path

from desk_sets import write_set
import numpy as np
import open_clip
import pytest
from quick_start import quick_start
from safetensors.torch import save_file
import torch
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import from_mapping, ModelConfig
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.model import DepthModel, load_model, read_card
from vlm_depth_ros.tools import train as training
from vlm_depth_ros.tools.datasets import SetConfig
from vlm_depth_ros.tools.recipe import read_recipe, StageConfig
from vlm_depth_ros.tools.room_context import mean_of_rooms
from vlm_depth_ros.tools.stage import Stage

RECIPES = Path(__file__).parent.parent / 'config' / 'train'
TOWERS = {
    'clip_vit_b16': ('ViT-B-16-quickgelu', 'openai'),
    'siglip_b16': ('ViT-B-16-SigLIP', 'webli'),
    'siglip2_b16': ('ViT-B-16-SigLIP2', 'webli'),
    'mobileclip2_s0': ('MobileCLIP2-S0', 'dfndr2b'),
    'clip_vit_l14': ('ViT-L-14-quickgelu', 'openai'),
}
SMALL_HW = {'clip_vit_l14': [56, 56]}
"""What each trains at here, to save time; 64 x 64 where nothing else is said."""
ALL = (*TOWERS, 'moa_depthclip_nyu', 'space_clip_nyu', 'space_clip_kitti', 'space_clip_nyu_mended')


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(root / 'set', [slope, slope[:, ::-1].copy()])
    return root


def tiny(recipe, **change):
    """The recipe on two pictures: two steps, one check."""
    (stage,) = recipe.stages
    sets, select = ({'folder': 'set'},), {'folder': 'set', 'rows': ((0, 1),)}
    stage = {**stage, 'steps': 2, 'epochs': None}
    return replace(recipe, sets=sets, select=select, stages=(stage,), **change)


@pytest.mark.parametrize('name', TOWERS)
@quick_start()
def test_recipe_trains_a_head_on_its_real_architecture(name, data, monkeypatch, caplog):
    tower, tag = TOWERS[name]
    starts, asked = [], []
    monkeypatch.setattr(Backbone, 'load_published', lambda self, t: asked.append(t))
    begin = Stage.run

    def watched(self):
        starts.append({k: v.clone() for k, v in self.job.model.head.state_dict().items()})
        metrics = begin(self)
        now = self.job.model.head.named_parameters()
        starts.append([k for k, v in now if torch.equal(v, starts[0][k])])
        return metrics

    monkeypatch.setattr(Stage, 'run', watched)
    recipe = read_recipe(RECIPES / f'{name}.yaml')
    small = recipe.model | {'input_hw': SMALL_HW.get(name, [64, 64])}
    recipe = tiny(recipe, batch=1, model=small)
    out = data / f'{name}.safetensors'
    metrics = training.train(recipe, data, out)
    card = read_card(out)
    assert asked == [tag] and card.model['tower'] == tower and not card.tower_embedded
    assert len(card.tower_sha256) == 64 and math.isfinite(metrics['abs_rel'])
    # All that a loss reaches has moved; only the finest auxiliary head has no weight.
    assert [k for k in starts[1] if not k.startswith('aux_depth_heads.2')] == []
    assert not [r for r in caplog.records if 'left out' in r.message]
    out.unlink()


@pytest.mark.parametrize('name', TOWERS)
def test_recipe_answers_at_its_own_size(name):
    """Of shapes without numbers: size does not matter."""
    config = ModelConfig.from_dict(read_recipe(RECIPES / f'{name}.yaml').model)
    with torch.device('meta'):
        found = DepthModel(config).eval()(torch.empty(2, 3, *config.input_hw))
    height, width = found.depth_m.shape[-2:]
    assert height == width >= config.input_hw[0] / 2


@quick_start()
def test_moa_recipe_finds_its_room_context_and_moves_heads_and_adapters(
    data, monkeypatch, tmp_path
):
    """CLIP with both sides is really built and asked, from a file in the towers folder."""
    name, tag = 'ViT-B-32-quickgelu', 'openai'
    torch.manual_seed(0)
    clip = open_clip.create_model(name)
    towers = tmp_path / 'towers'
    towers.mkdir()
    save_file(clip.state_dict(), towers / f'{name}.{tag}.safetensors')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(towers))
    recipe = tiny(read_recipe(RECIPES / 'moa_depthclip_nyu.yaml'), batch=1)
    assert from_mapping(StageConfig, recipe.stages[0], name).constant_lr
    out = tmp_path / 'moa.safetensors'
    training.train(recipe, data, out)
    made = load_model(out)
    expected = mean_of_rooms(clip.eval(), open_clip.get_tokenizer(name))
    torch.testing.assert_close(made.head.context, expected)
    own = dict(made.backbone.tower.named_parameters())
    assert all(torch.equal(own[k], v) for k, v in clip.visual.named_parameters())
    blocks = made.head.tower_change.state_dict()
    assert any(bool(v.abs().sum()) for k, v in blocks.items() if k.endswith('2.weight'))


def test_without_the_download_the_file_to_fetch_and_its_place_are_named(
    data, monkeypatch, tmp_path
):
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path / 'towers'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    recipe = tiny(read_recipe(RECIPES / 'mobileclip2_s0.yaml'))
    with pytest.raises(WeightsError, match=r'Copy .* to .*towers/MobileCLIP2-S0\.dfndr2b\.'):
        training.train(recipe, data, tmp_path / 'x.safetensors')


def test_tower_without_weights_is_never_trained_on(data, tmp_path):
    """A forgotten tag must not become a head on a tower that has seen nothing."""
    recipe = read_recipe(RECIPES / 'clip_vit_b16.yaml')
    recipe = tiny(recipe, model=recipe.model | {'pretrained': None})
    with pytest.raises(ConfigError, match="'ViT-B-16-quickgelu' would be frozen with random wei"):
        training.train(recipe, data, tmp_path / 'x.safetensors')


@pytest.mark.parametrize('name', ALL)
def test_recipe_is_whole_and_keeps_the_data_rules(name):
    """Rows that judge or choose never train, and the sets from elsewhere never do."""
    recipe = read_recipe(RECIPES / f'{name}.yaml')
    assert recipe.name == name and 'research' in recipe.licence
    model = ModelConfig.from_dict(recipe.model)
    assert model.camera is not None and model.pretrained
    assert all(from_mapping(StageConfig, s, name).frozen_tower for s in recipe.stages)
    sets = [from_mapping(SetConfig, s, name) for s in recipe.sets]
    assert not {s.folder for s in sets} & {'tum_fr1_rpy', 'kitti_street', '7scenes_redkitchen'}
    for entry in sets:
        rows = {i for a, b in entry.rows for i in range(a, b)}
        assert entry.folder != 'nyu_train795' or (rows and not rows & set(range(159, 318)))


@pytest.mark.parametrize('name', TOWERS)
def test_recipes_differ_in_the_tower_alone(name):
    mended = read_recipe(RECIPES / 'space_clip_nyu_mended.yaml')
    found = read_recipe(RECIPES / f'{name}.yaml')
    model = {**mended.model, 'tower': TOWERS[name][0], 'pretrained': TOWERS[name][1],
             'input_hw': found.model['input_hw']}  # fmt: skip
    same = replace(
        mended, name=name, model=model, licence=found.licence, notice=found.notice
    )
    assert found == same
