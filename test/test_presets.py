"""SPACE-CLIP's presets on real towers: taps, grids, parameters, gradients, any size and aspect."""

from contextlib import redirect_stdout
import gc
import io
from pathlib import Path
import re

import pytest
from quick_start import quick_start
import torch
from towers import picture
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.heads.registry import build_head
from vlm_depth_ros.core.model import DepthModel

DOC = Path(__file__).parent.parent / 'docs' / 'heads.md'
PRESETS = ('early', 'middle', 'late', 'none')
WIDTHS = (256, 128, 64, 32)

OF_12 = ((12, 9, 6, 3), {'early': (2, 1, 0), 'middle': (7, 5, 4), 'late': (11, 10, 8)})
OF_24 = ((24, 18, 12, 6), {'early': (4, 2, 0), 'middle': (14, 10, 8), 'late': (22, 20, 16)})
BY_STRIDE = ((4, 3, 2, 1), {'early': (2, 1, 0), 'middle': (3, 2, 1), 'late': (4, 3, 2)})
TOWERS = {
    'ViT-B-16-quickgelu': (OF_12, (28, 56, 112, 224), (64, 96)),
    'ViT-B-32-quickgelu': (OF_12, (14, 28, 56, 112), (128, 192)),
    'ViT-L-14-quickgelu': (OF_24, (32, 64, 128, 256), (56, 84)),
    'ViT-B-16-SigLIP': (OF_12, (28, 56, 112, 224), (96, 64)),
    'MobileCLIP2-S0': (BY_STRIDE, (16, 32, 64, 128), (64, 96)),
    'RN50-quickgelu': (BY_STRIDE, (14, 28, 56, 112), (96, 64)),
}
"""Taps, the sides of the stages at the tower's own input size, and another size to train at."""


def stage_grids(head, features):
    """(h, w) of the four semantic stages and of the structural ones, from one pass."""
    seen = {'main_decoder_blocks': [], 'structural_decoder_blocks': []}
    hooks = [
        block.register_forward_hook(
            lambda _, args, out, grids=grids: grids.append(tuple(out.shape[-2:]))
        )
        for name, grids in seen.items()
        for block in getattr(head, name)
    ]
    found = head(features)
    for hook in hooks:
        hook.remove()
    return found, *seen.values()


# --- what a preset is, without numbers in it ----------------------------------------------------


@pytest.fixture(scope='module')
def on_meta():
    """Towers that have shapes and no numbers, each built once."""
    with torch.device('meta'):
        return {tower: Backbone(tower).eval() for tower in TOWERS}


def in_paper(c_in, pooled, semantic, structural):
    """Trained parameters, counted from the description of the network."""
    norm, total = 2, 0

    def conv(a, b, side, bias=False):
        return a * b * side**2 + (b if bias else 0)

    def up(a, b):
        return conv(a, b, 2, bias=True) + conv(b, b, 3) + norm * b

    for i, (k, c) in enumerate(zip(semantic, WIDTHS)):
        total += pooled * 256 + 256 + 256 * 2 * c_in[k] + 2 * c_in[k]  # FiLM
        total += conv(c_in[k], c, 1, bias=True)
        skips = 2 if structural and i < 3 else 1
        total += up(WIDTHS[max(i - 1, 0)], c) + skips * conv(c, c, 1, bias=True)
        total += conv((1 + skips) * c, c, 3) + norm * c
        total += 2 * (conv(c, c, 3) + norm * c)  # residual
    for i, (k, c) in enumerate(zip(structural, WIDTHS)):
        total += conv(c_in[k], c, 1, bias=True)
        total += up(c_in[k] if i == 0 else WIDTHS[i - 1], c) + conv(2 * c, c, 3) + norm * c
    total += conv(32, 16, 3) + norm * 16 + conv(16, 1, 3, bias=True)
    for c in WIDTHS[:3]:  # auxiliary heads
        hidden = max(c // 2, 16)
        total += conv(c, hidden, 3) + norm * hidden + conv(hidden, 1, 1, bias=True)
    return total


def test_the_description_counts_to_the_authors_numbers():
    """What the other ledgers here are checked with."""
    assert in_paper((768,) * 13, 768, (12, 9, 6, 3), (2, 1, 0)) == 12_050_996
    assert in_paper((768,) * 13, 768, (12, 9, 6, 3), ()) == 7_570_932


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('tower', TOWERS)
def test_taps_grids_and_parameters_of_a_preset(on_meta, tower, preset):
    (semantic, structural), sides, _ = TOWERS[tower]
    structural, backbone = structural.get(preset, ()), on_meta[tower]
    with torch.device('meta'):
        head = build_head({'name': 'space_clip', 'structural': preset}, backbone.spec)
        image = torch.empty(2, 3, *backbone.spec.input_hw)
        found, main, side = stage_grids(head, backbone(image, head.layers))
    assert (head.semantic, head.structural) == (semantic, structural)
    assert main == [(n, n) for n in sides]
    assert side == main[:len(structural)]
    assert found.depth_m.shape == (2, 1, sides[-1], sides[-1])
    widths, pooled = backbone.spec.widths, backbone.spec.pooled_width
    trained = sum(p.numel() for p in head.parameters())
    assert trained == in_paper(widths, pooled, semantic, structural)


def test_the_tables_of_the_page_are_what_its_command_prints():
    """Taps and ledger of more towers, this package's own among them."""
    page = DOC.read_text()
    (command,) = re.findall(r'^```python\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(command, DOC.name, 'exec'), {})
    tables = printed.getvalue().strip().split('\n\n')
    assert len(tables) == 2
    for table in tables:
        assert f'\n\n{table}\n\n' in page, f'docs/heads.md should have:\n{table}'
    for tower in TOWERS:
        assert tower in printed.getvalue()


# --- training on a frozen tower, at another size and aspect -------------------------------------


@pytest.fixture(scope='module', params=TOWERS)
def backbone(request):
    """A real tower for a small input that is not square; one at a time."""
    torch.manual_seed(0)
    with quick_start():
        tower = Backbone(request.param, TOWERS[request.param][2])
    yield tower
    del tower
    gc.collect()


@pytest.mark.parametrize('preset', PRESETS)
def test_gradients_reach_the_whole_head_and_nothing_of_the_tower(backbone, preset):
    """At a size that the tower's positions, where it has some, were interpolated to."""
    spec = backbone.spec
    torch.manual_seed(1)
    config = ModelConfig(
        spec.tower, {'name': 'space_clip', 'structural': preset}, input_hw=spec.input_hw
    )
    model = DepthModel(config, backbone)
    model.freeze_tower()
    model.train()
    statistics = {k: v.clone() for k, v in backbone.tower.named_buffers()}
    features = backbone(picture(spec.input_hw, count=2), model.head.layers)
    found, main, side = stage_grids(model.head, features)
    stride = spec.strides[model.head.semantic[0]]
    grids = [tuple(2 ** (i + 1) * n // stride for n in spec.input_hw) for i in range(4)]
    assert (main, side) == (grids, grids[:len(side)])
    assert len(side) == (0 if preset == 'none' else 3)
    assert found.depth_m.shape[-2:] == grids[-1] and torch.isfinite(found.depth_m).all()
    depths = [found.depth_m, *found.extras['aux_depth_m']]
    sum(((2 - d) ** 2).mean() for d in depths).backward()
    without = [n for n, p in model.head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    for name, value in backbone.tower.named_buffers():
        assert torch.equal(value, statistics[name]), f'{name} moved'
