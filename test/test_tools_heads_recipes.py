"""The recipes of the table of heads: alike but for the head, and each trains on pocket's tower.

Two steps each, on pictures made here, so that no data set is needed.
"""

from dataclasses import replace
import math
from pathlib import Path

from desk_sets import write_set
import numpy as np
import pytest
from vlm_depth_ros.core.estimator import DepthEstimator
from vlm_depth_ros.core.heads.registry import HEADS
from vlm_depth_ros.core.model import find_weights, read_card
from vlm_depth_ros.tools import train as training
from vlm_depth_ros.tools.compare import plan
from vlm_depth_ros.tools.recipe import read_recipe

RECIPES = Path(__file__).parent.parent / 'config' / 'train'
FOLDERS = [RECIPES / 'heads', RECIPES / 'heads' / 'ablation']
ALL = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob('*.yaml'))}
# Adapters inside a plain ViT, and CLIP's or BLIP-2's words: not for a tower without them.
NOT_ON_POCKET = {'moa_depthclip', 'depthclip', 'depthblip2'}

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    write_set(root / 'set', [slope, slope[:, ::-1].copy(), slope + 1])
    return root


def test_recipes_of_the_table_and_of_the_ablation_differ_in_the_head_alone(tmp_path):
    runs = plan(FOLDERS, '1,2,3', tmp_path)
    assert len(runs) == 3 * len(ALL) and len({run.out for run in runs}) == len(runs)
    assert {name: path.stem for name, path in ALL.items()} == {
        run.config.name: run.config.name for run in runs
    }


def test_every_head_that_accepts_the_tower_has_a_recipe():
    heads = {read_recipe(path).model['head']['name'] for path in ALL.values()}
    ours = {name for name, head in HEADS.items() if head.__module__.startswith('vlm_depth_ros')}
    assert heads == ours - NOT_ON_POCKET


def test_recipes_keep_pockets_data_rules():
    """Its sets (fewer of the rendered rooms), rows that choose and rows held out."""
    pocket, ours = read_recipe(RECIPES / 'pocket.yaml'), read_recipe(ALL['space_clip'])
    *photographs, rooms = pocket.sets
    assert ours.sets == (*photographs, {**rooms, 'rows': ours.sets[-1]['rows']})
    for what in ('select', 'held_out', 'augment', 'batch', 'cache_hw', 'licence'):
        assert getattr(ours, what) == getattr(pocket, what), what
    assert ours.model | {'head': None} == pocket.model | {'head': None}
    assert ours.tower_from == 'pocket'


@pytest.mark.parametrize('name', ALL)
def test_recipe_trains_on_pockets_tower(name, data):
    recipe = read_recipe(ALL[name])
    recipe = replace(
        recipe, sets=({'folder': 'set', 'rows': ((0, 2),)},), held_out=(), batch=2,
        select={'folder': 'set', 'rows': ((2, 3),)}, feature_views=1,
        stages=({**recipe.stages[0], 'steps': 2},),
    )  # fmt: skip
    out = data / f'{name}.safetensors'
    metrics = training.train(recipe, data, out)
    assert recipe.name == name and math.isfinite(metrics['abs_rel'])
    assert read_card(out).tower_sha256 == read_card(find_weights('pocket')).tower_sha256
    prediction = DepthEstimator.from_weights(out)(np.full((48, 64, 3), 90, np.uint8))
    assert np.isfinite(prediction.depth_m).mean() > 0.9
