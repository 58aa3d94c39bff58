"""Towers under Hugging Face's names: the same numbers come out as transformers computes."""

import open_clip
import pytest
from quick_start import quick_start
from safetensors import safe_open
from safetensors.torch import save_file
import timm
import torch
import torch.nn.functional as F
from towers import build, picture, TAG
from vlm_depth_ros.core import towers as towers_module
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.errors import ConfigError, WeightsError
from vlm_depth_ros.core.tower_naming import (
    hugging_face_clip_sha256,
    image_tower_keys,
    state_sha256,
    to_open_clip,
)
from vlm_depth_ros.core.towers import tower_state

transformers = pytest.importorskip('transformers')

SMALL = {'hidden_size': 32, 'intermediate_size': 128, 'num_attention_heads': 2, 'patch_size': 16}
LEVELS = {'transformers 5.2': 'vision_model.', 'transformers 5.3': '', 'a full model': 'm.x.'}
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


def randomised(module, seed=0):
    """Every tensor moved off its initial value, so that a swapped or forgotten one shows."""
    rng = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=rng)
    return module.eval().requires_grad_(False)


def their_clip(**options):
    """Hugging Face's CLIP image tower, of the size of `tiny-vit`."""
    config = transformers.CLIPVisionConfig(
        **SMALL, num_hidden_layers=12, image_size=64, hidden_act='gelu', projection_dim=24,
        **options,
    )  # fmt: skip
    return randomised(transformers.CLIPVisionModelWithProjection(config))


def named(state, prefix):
    """A state dict as one of transformers' versions writes it."""
    bare = {k.removeprefix('vision_model.'): v for k, v in state.items()}
    return {k if k == 'visual_projection.weight' else prefix + k: v for k, v in bare.items()}


def image_state(state):
    """What a reader of the file hands on."""
    return to_open_clip({name: state[key] for key, name in image_tower_keys(state).items()})


@pytest.mark.parametrize('level', LEVELS)
def test_every_state_of_a_clip_tower_is_that_of_transformers(level):
    theirs, ours = their_clip(), build('tiny-vit', seed=9)
    ours.load_native_state(image_state(named(theirs.state_dict(), LEVELS[level])), 'here')
    image = picture((64, 64), count=2)
    expected = theirs(image, output_hidden_states=True)
    found = ours(image, range(13), want_embedding=True)
    for k, tokens in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.maps[k].flatten(2).mT, tokens[:, 1:], **CLOSE)
    body = getattr(theirs, 'vision_model', None)
    torch.testing.assert_close(found.pooled, body(image).pooler_output, **CLOSE)
    torch.testing.assert_close(found.embedding, F.normalize(expected.image_embeds), **CLOSE)


def test_every_state_of_a_siglip_tower_is_that_of_transformers():
    """With the tanh form of GELU, in which open_clip's own tower differs from theirs."""
    config = transformers.SiglipVisionConfig(**SMALL, num_hidden_layers=3, image_size=64)
    theirs = randomised(transformers.SiglipVisionModel(config))
    trunk = timm.create_model(
        'vit_base_patch16_siglip_224', num_classes=0, img_size=64, embed_dim=32, depth=3,
        num_heads=2, act_layer='gelu_tanh',
    ).eval()  # fmt: skip
    state = image_state(named(theirs.state_dict(), 'vision_model.'))
    trunk.load_state_dict({k.removeprefix('trunk.'): v for k, v in state.items()})
    for part in trunk.attn_pool.mlp.modules():
        if isinstance(part, torch.nn.GELU):
            part.approximate = 'tanh'
    image = picture((64, 64), count=2)
    expected = theirs(image, output_hidden_states=True)
    last, maps = trunk.forward_intermediates(image, norm=False, output_fmt='NLC')
    for found, tokens in zip(maps, expected.hidden_states[1:]):
        torch.testing.assert_close(found, tokens, **CLOSE)
    torch.testing.assert_close(trunk.forward_head(last), expected.pooler_output, **CLOSE)


@quick_start()
def test_siglip_of_the_real_name_with_its_tanh_is_that_of_transformers():
    """Base, 224: maps and pooled through `Backbone`; without the option they differ."""
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig()).eval()
    for p in theirs.parameters():
        p.data *= 1.5  # far enough from zero for the two GELUs to differ
    state = image_state(theirs.state_dict())
    image = picture((224, 224))
    with torch.inference_mode():
        expected = theirs(image, output_hidden_states=True)
        ours = Backbone('ViT-B-16-SigLIP', activation='gelu_tanh').eval()
        ours.load_native_state(state, 'here')
        found = ours(image, [0, 4, 12])
        exact = Backbone('ViT-B-16-SigLIP').eval()
        exact.load_native_state(state, 'here')
        other = exact(image, [12]).pooled
    for k, m in found.maps.items():
        torch.testing.assert_close(m.flatten(2).mT, expected.hidden_states[k], **CLOSE)
    torch.testing.assert_close(found.pooled, expected.pooler_output, **CLOSE)
    assert (other - expected.pooler_output).abs().max() > 1e-4


def test_another_activation_is_refused_where_it_does_not_belong():
    for tower, name in (('tiny-vit', 'gelu_tanh'), ('tiny-siglip', 'relu')):
        with pytest.raises(ConfigError, match=f"tower_activation '{name}' on tower '{tower}'"):
            Backbone(tower, activation=name)


# --- hashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['vision_model.', ''])
def test_a_hash_made_by_transformers_names_is_recognised(prefix):
    """As SPACE-CLIP's layer study records it: sorted keys, raw bytes, no projection."""
    state = named(their_clip().state_dict(), prefix)
    ours = image_state(state)
    del state['visual_projection.weight']
    assert state_sha256(state) in hugging_face_clip_sha256(ours)
    ours['ln_pre.bias'] = ours['ln_pre.bias'] + 1e-3
    assert state_sha256(state) not in hugging_face_clip_sha256(ours)


def test_the_frozen_hash_is_one_for_every_file_and_input_size_of_a_tower():
    """Names, half precision on the disk, projection and interpolated positions aside."""
    theirs = their_clip()
    state = image_state(theirs.state_dict())
    backbones = [build('tiny-vit', hw) for hw in (None, (64, 128), (32, 48), None)]
    for backbone in backbones[:3]:
        backbone.load_native_state(state, 'here')
    bare = {k: v for k, v in state.items() if k != 'proj'}
    backbones[3].load_native_state(bare, 'here')
    assert len({b.frozen_sha256() for b in backbones}) == 1
    assert backbones[0].frozen_sha256() != build('tiny-vit').frozen_sha256()
    assert len({b.state_sha256() for b in backbones}) == 4


def test_a_tower_without_projection_sees_and_refuses_to_embed():
    """Hugging Face's vision models end before it."""
    state = image_state(their_clip().state_dict())
    whole, bare = build('tiny-vit'), build('tiny-vit', seed=3)
    whole.load_native_state(state, 'here')
    del state['proj']
    bare.load_native_state(state, 'here')
    image = picture((64, 64))
    assert torch.equal(bare(image, [12]).maps[12], whole(image, [12]).maps[12])
    assert (whole.spec.embedding_width, bare.spec.embedding_width) == (24, None)
    with pytest.raises(ConfigError, match="'tiny-vit' has no trained projection"):
        bare(image, [], want_embedding=True)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.safetensors', '.bin', '.pt'])
@pytest.mark.parametrize('form', ['hugging face', 'open_clip', 'bare'])
def test_a_local_file_in_any_naming_gives_the_tower(tmp_path, form, suffix):
    theirs = their_clip()
    native = image_state(theirs.state_dict())
    state = {
        'hugging face': {**named(theirs.state_dict(), 'vision_model.'),
                         'text_model.embeddings.token_embedding.weight': torch.zeros(9, 9)},
        'open_clip': {**{f'visual.{k}': v for k, v in native.items()},
                      'token_embedding.weight': torch.zeros(9, 9)},
        'bare': native,
    }[form]  # fmt: skip
    path = tmp_path / f'model{suffix}'
    state = {k: v.half().float().contiguous() for k, v in state.items()}
    if suffix == '.safetensors':
        save_file(state, path)
    else:
        torch.save({k: v.half() for k, v in state.items()}, path)  # as published: half precision
    found = tower_state(path)
    assert sorted(found) == sorted(native)
    assert all(torch.equal(found[k], native[k].half().float()) for k in native)
    backbone = build('tiny-vit')
    backbone.load_published(None, path)
    assert backbone.frozen_sha256() == state_sha256(
        {k: v for k, v in found.items() if k != 'proj'}
    )


def test_text_of_a_hugging_face_file_stays_on_the_disk(tmp_path, monkeypatch):
    path, read = tmp_path / 'model.safetensors', []
    save_file({**named(their_clip().state_dict(), 'vision_model.'),
               'text_model.final_layer_norm.weight': torch.zeros(9)}, path)  # fmt: skip

    class Recorder:
        def __init__(self, *args):
            self.file = safe_open(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            self.file.__exit__(*args)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, key):
            read.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(towers_module, 'safe_open', Recorder)
    tower_state(path)
    assert read and not [k for k in read if k.startswith('text')]


class Code:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize(('make', 'message'), [
    (lambda p: None, 'no such file. Expected a .safetensors or .bin or .pt file'),
    (lambda p: p.write_bytes(b'PK\x03\x04 cut'), 'not a readable tower file'),
    (lambda p: torch.save({'visual.conv1.weight': Code(p.parent / 'ran')}, p), 'not a readable'),
    (lambda p: torch.save({'encoder.weight': torch.zeros(3)}, p), "does not fit tower 'tiny-vit'"),
    (lambda p: torch.save({}, p), 'not a readable tower file'),
    (lambda p: torch.save(named(dict(list(their_clip().state_dict().items())[:30]), ''), p),
     r'not a readable tower file|does not fit'),
    (lambda p: torch.save(named(their_clip(attention_dropout=0.0).state_dict(), '') | {
        'embeddings.position_embedding.weight': torch.zeros(9, 16)}, p), 'does not fit'),
])  # fmt: skip
def test_a_bad_tower_file_is_one_clear_line_and_loads_nothing(tmp_path, make, message):
    path, backbone = tmp_path / 'tower.pt', build('tiny-vit')
    before = backbone.state_sha256()
    make(path)
    with pytest.raises(WeightsError, match=message):
        backbone.load_published(TAG, path)
    assert backbone.state_sha256() == before
    assert not (tmp_path / 'ran').exists()


def test_a_tower_of_its_owner_is_used_as_it_is():
    """One module for two consumers: neither copied nor moved, its training flags untouched."""
    model = open_clip.model._build_vision_tower(
        24, open_clip.CLIPVisionCfg(layers=12, width=32, head_width=16, image_size=64)
    )
    shared = Backbone('tiny-vit', module=model)
    assert shared.tower is model and shared.is_shared and not model.training
    assert all(p.requires_grad for p in model.parameters())
    own = build('tiny-vit')
    own.load_native_state(model.state_dict(), 'here')
    image = picture((64, 64))
    assert torch.equal(shared(image, [5]).maps[5], own(image, [5]).maps[5])
    assert shared.frozen_sha256() == own.frozen_sha256()


@pytest.mark.parametrize(('change', 'message'), [
    ({'quick_gelu': True}, r'has the activation QuickGELU\(\), expected GELU'),
    ({'layers': 11}, "is not a tower 'tiny-vit': 12 of its"),
    ({'width': 48}, "is not a tower 'tiny-vit'"),
    ({'half': True}, 'is held in float16, expected float32'),
    ({'image_size': 96}, r'takes \(96, 96\) input, but \(64, 64\) is needed'),
    ({'module': torch.nn.Linear(2, 2)}, 'the given Linear is not a tower'),
])  # fmt: skip
def test_another_tower_than_the_one_meant_is_refused(change, message):
    options = {'layers': 12, 'width': 32, 'head_width': 16, 'image_size': 64}
    quick, half = change.pop('quick_gelu', False), change.pop('half', False)
    module = change.pop('module', None) or open_clip.model._build_vision_tower(
        24, open_clip.CLIPVisionCfg(**options | change), quick
    )
    if half:
        module = module.half()
    with pytest.raises(ConfigError, match=message):
        Backbone('tiny-vit', module=module)
