"""The tower contract: what `Features` holds is what open_clip's own forward computes."""

import copy
import gc
import os
import pickle

import open_clip
from open_clip.transformer import TextTransformer
import pytest
from safetensors.torch import save_file
import torch
import torch.nn.functional as F
from towers import build, HIERARCHICAL, picture, PLAIN, shared, TAG, TOWERS
from vlm_depth_ros.core import towers as towers_module
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.errors import ConfigError, InputError, WeightsError
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.tower_change import TowerChange
from vlm_depth_ros.core.tower_module import resize_position_grid
from vlm_depth_ros.core.towers import check_activation


def all_layers(backbone):
    """Every valid layer number."""
    return range(backbone.spec.num_layers + 1)


# --- the spec -----------------------------------------------------------------------------------


@pytest.mark.parametrize('tower', TOWERS)
def test_spec_is_what_a_forward_pass_gives(tower):
    """A head is built from the spec alone, before it sees a map."""
    backbone = shared(tower)
    spec, image = backbone.spec, picture(backbone.spec.input_hw, count=2)
    found = backbone(image, all_layers(backbone))
    assert list(found.maps) == list(all_layers(backbone))
    for k, m in found.maps.items():
        grid = tuple(n // spec.strides[k] for n in spec.input_hw)
        assert m.shape == (2, spec.widths[k], *grid), f'map {k}'
    assert found.pooled.shape == (2, spec.pooled_width)
    assert found.embedding is None
    assert spec.is_hierarchical == (tower in HIERARCHICAL)
    assert list(spec.strides) == sorted(spec.strides)


def test_spec_of_the_papers_tower_is_twelve_blocks_of_768():
    """The one real name that is built here; the head's ledger is counted on this spec."""
    spec = Backbone('ViT-B-16-quickgelu', pretrained='openai').spec
    assert (spec.widths, spec.strides) == ((768,) * 13, (16,) * 13)
    assert (spec.num_layers, spec.pooled_width, spec.embedding_width) == (12, 768, 512)
    assert (spec.input_hw, spec.has_class_token) == ((224, 224), True)
    assert spec.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert spec.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(('tower', 'expected'), [
    ('tiny-vit', True), ('tiny-timm-vit', True), ('tiny-siglip', False), ('tiny-resnet', False),
])  # fmt: skip
def test_spec_says_whether_there_is_a_class_token(tower, expected):
    assert shared(tower).spec.has_class_token is expected


def test_normalisation_is_the_one_of_the_pretrained_tag():
    """SigLIP's is 0.5, MobileCLIP's none at all; a wrong one costs accuracy in silence."""
    tagged = Backbone('tiny-vit', pretrained=TAG).spec
    assert (tagged.mean, tagged.std) == ((0.4, 0.5, 0.6), (0.25,) * 3)
    assert shared('tiny-siglip').spec.mean == (0.5, 0.5, 0.5)
    assert shared('tiny-resnet').spec.mean == open_clip.OPENAI_DATASET_MEAN


# --- layer numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize('tower', PLAIN)
def test_map_zero_of_a_transformer_is_what_enters_its_first_block(tower):
    """SPACE-CLIP's numbering: open_clip never returns the embedding."""
    backbone = shared(tower)
    body = backbone.tower
    blocks = body.transformer.resblocks if tower == 'tiny-vit' else body.trunk.blocks
    entered = []
    hook = blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    image = picture(backbone.spec.input_hw)
    found = backbone(image, [0]).maps[0]
    hook.remove()
    tokens = entered[0][:, -found.shape[2] * found.shape[3]:]  # class and registers come first
    assert torch.equal(found, tokens.transpose(1, 2).reshape(found.shape))


@pytest.mark.parametrize('tower', [*PLAIN, 'tiny-fastvit', 'tiny-convnext'])
def test_map_k_is_open_clips_intermediate_k_minus_one(tower):
    backbone = shared(tower)
    image = picture(backbone.spec.input_hw)
    theirs = backbone.tower.forward_intermediates(image)['image_intermediates']
    ours = backbone(image, all_layers(backbone)).maps
    assert len(ours) == len(theirs) + 1
    for k, m in enumerate(theirs, start=1):
        assert torch.equal(ours[k], m), f'map {k}'


@pytest.mark.parametrize('tower', ['pocket-tower', 'tiny-resnet'])
def test_map_k_is_open_clips_intermediate_k_where_that_starts_at_the_stem(tower):
    backbone = shared(tower)
    image = picture((64, 64))
    theirs = backbone.tower.forward_intermediates(image)['image_intermediates']
    ours = backbone(image, all_layers(backbone)).maps
    assert len(ours) == len(theirs)
    assert all(torch.equal(ours[k], m) for k, m in enumerate(theirs))


@pytest.mark.parametrize('tower', ['tiny-fastvit', 'tiny-convnext'])
def test_map_zero_of_a_hierarchical_tower_is_its_stem(tower):
    backbone = shared(tower)
    image = picture((64, 64))
    assert torch.equal(backbone(image, [0]).maps[0], backbone.tower.trunk.stem(image))


@pytest.mark.parametrize('tower', TOWERS)
@pytest.mark.parametrize('which', ['none', 'first', 'last', 'some', 'twice'])
def test_any_choice_of_layers_gives_those_maps_and_no_other(tower, which):
    """In any order; a head may read the embedding alone, or only the pooled vector."""
    backbone = shared(tower)
    last = backbone.spec.num_layers
    layers = {
        'none': [], 'first': [0], 'last': [last], 'some': [last, 0, 2], 'twice': [2, 2]
    }[which]  # fmt: skip
    image = picture(backbone.spec.input_hw)
    everything = backbone(image, all_layers(backbone))
    found = backbone(image, layers)
    assert set(found.maps) == set(layers)
    assert all(torch.equal(found.maps[k], everything.maps[k]) for k in layers)
    assert torch.equal(found.pooled, everything.pooled)


@pytest.mark.parametrize('layers', [[-1], [13], [0, 99]])
def test_a_layer_that_does_not_exist_is_refused(layers):
    with pytest.raises(ConfigError, match="'tiny-vit' has layers 0 to 12, asked for"):
        shared('tiny-vit')(picture((64, 64)), layers)


# --- class tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize('tower', TOWERS)
def test_class_tokens_come_with_the_maps_that_are_asked_for(tower):
    """Raw, as the maps are; towers that have none say so by an empty field."""
    backbone = shared(tower)
    layers = [0, 2, backbone.spec.num_layers]
    found = backbone(picture(backbone.spec.input_hw, count=2), layers)
    assert list(found.class_tokens) == (layers if backbone.spec.has_class_token else [])
    assert all(t.shape == (2, backbone.spec.widths[k]) for k, t in found.class_tokens.items())


@pytest.mark.parametrize('tower', ['tiny-vit', 'tiny-timm-vit'])
def test_a_class_token_is_the_first_token_after_its_block(tower):
    backbone = shared(tower)
    body = backbone.tower
    blocks = body.transformer.resblocks if tower == 'tiny-vit' else body.trunk.blocks
    seen = {}
    hooks = [blocks[0].register_forward_pre_hook(lambda _, args: seen.update({0: args[0]}))]
    for k, block in enumerate(blocks, start=1):
        hooks.append(block.register_forward_hook(lambda *a, k=k: seen.update({k: a[2]})))
    found = backbone(picture(backbone.spec.input_hw), all_layers(backbone)).class_tokens
    for hook in hooks:
        hook.remove()
    assert list(found) == list(seen)
    assert all(torch.equal(found[k], seen[k][:, 0]) for k in found)


def test_a_changed_tower_has_the_class_tokens_of_its_changed_blocks():
    backbone, image = shared('tiny-vit'), picture((64, 64))
    plain = backbone(image, [2, 3])
    same = backbone(image, [2, 3], change=TowerChange({}))
    other = backbone(image, [2, 3], change=TowerChange({1: Doubled()}))
    for k in (2, 3):
        torch.testing.assert_close(same.class_tokens[k], plain.class_tokens[k])
    torch.testing.assert_close(other.class_tokens[2], 2 * plain.class_tokens[2])


class Doubled(torch.nn.Module):
    """An adapter that shows."""

    def forward(self, tokens):
        return 2 * tokens


# --- global vectors -----------------------------------------------------------------------------


def test_pooled_of_a_native_transformer_is_the_normalised_class_token():
    """Before the text projection: open_clip gives the same once its projection is taken away."""
    backbone = shared('tiny-vit')
    image = picture((64, 64), count=2)
    bare = copy.deepcopy(backbone.tower)
    bare.proj = None
    assert torch.equal(backbone(image, []).pooled, bare(image))
    last = []
    hook = bare.transformer.resblocks[-1].register_forward_hook(lambda *a: last.append(a[2]))
    bare(image)
    hook.remove()
    expected = bare.ln_post(last[0][:, 0])
    torch.testing.assert_close(backbone(image, []).pooled, expected, rtol=1e-5, atol=1e-6)


def test_pooled_of_siglip_is_its_attention_pool():
    backbone = shared('tiny-siglip')
    trunk, image = backbone.tower.trunk, picture((160, 160))
    expected = trunk.attn_pool(trunk.forward_features(image))
    torch.testing.assert_close(backbone(image, []).pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('tower', ['pocket-tower', 'tiny-fastvit', 'tiny-timm-vit'])
def test_pooled_of_a_timm_tower_is_what_its_classifier_reads(tower):
    backbone = shared(tower)
    trunk, image = backbone.tower.trunk, picture(backbone.spec.input_hw)
    expected = trunk.forward_head(trunk.forward_features(image), pre_logits=True)
    torch.testing.assert_close(backbone(image, []).pooled, expected, rtol=1e-5, atol=1e-6)


def test_pooled_of_a_resnet_is_the_mean_of_its_last_map():
    """Its own pool projects inside, so that nothing stands before the projection."""
    found = shared('tiny-resnet')(picture((64, 96)), [4])
    assert torch.equal(found.pooled, found.maps[4].mean(dim=(2, 3)))


@pytest.mark.parametrize('tower', [t for t in TOWERS if t != 'pocket-tower'])
def test_embedding_is_open_clips_image_embedding(tower):
    """One forward pass serves depth and search: it equals encode_image(normalize=True)."""
    backbone = shared(tower)
    image = picture(backbone.spec.input_hw, count=2)
    found = backbone(image, [1], want_embedding=True).embedding
    expected = F.normalize(backbone.tower(image), dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (2, backbone.spec.embedding_width)


def test_a_tower_without_a_trained_projection_refuses_to_embed():
    with pytest.raises(ConfigError, match="'pocket-tower' has no trained projection"):
        shared('pocket-tower')(picture((64, 64)), [], want_embedding=True)


def test_a_resnet_embeds_at_its_own_size_only_and_says_so():
    """Depth works at any size; the attention pool has learned positions."""
    backbone = shared('tiny-resnet', (64, 96))
    assert backbone(picture((64, 96)), [4]).maps[4].shape[-2:] == (2, 3)
    with pytest.raises(ConfigError, match="'tiny-resnet' embeds .* input only"):
        backbone(picture((64, 96)), [4], want_embedding=True)


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize('tower', TOWERS)
def test_input_need_not_be_square(tower):
    backbone = shared(tower, (64, 128))
    spec = backbone.spec
    found = backbone(picture((64, 128)), all_layers(backbone))
    assert spec.input_hw == (64, 128)
    for k, m in found.maps.items():
        assert m.shape[-2:] == (64 // spec.strides[k], 128 // spec.strides[k])
    assert torch.isfinite(found.pooled).all()


@pytest.mark.parametrize('tower', HIERARCHICAL)
def test_a_hierarchical_tower_takes_any_multiple_of_its_stride(tower):
    backbone = shared(tower)
    assert backbone(picture((96, 160)), [4]).maps[4].shape[-2:] == (3, 5)
    with pytest.raises(InputError, match='both sides must be multiples of 32'):
        backbone(picture((96, 100)), [4])


@pytest.mark.parametrize('tower', TOWERS)
def test_an_input_size_between_cells_is_refused_when_built(tower):
    with pytest.raises(ConfigError, match=rf"input size \(72, 64\) .*'{tower}'.* multiples of"):
        Backbone(tower, (72, 64))


def test_a_transformer_refuses_another_size_than_it_was_built_for():
    with pytest.raises(InputError, match=r"'tiny-vit' was built for \(64, 64\) input, got \(96, "):
        shared('tiny-vit')(picture((96, 64)), [1])


def test_positions_are_interpolated_and_the_class_token_is_not():
    square = build('tiny-vit').tower.positional_embedding.data
    wide = build('tiny-vit', (64, 128)).tower.positional_embedding.data
    assert wide.shape == (1 + 4 * 8, 32)
    assert torch.equal(wide[0], square[0])
    # Upsampling by two keeps the mean of what it stretches.
    torch.testing.assert_close(wide[1:].mean(0), square[1:].mean(0), atol=2e-3, rtol=0)
    assert torch.equal(resize_position_grid(square, (4, 4), (4, 4)), square)


def test_positions_keep_their_place_on_a_grid_of_another_shape():
    """Rows stay rows: a ramp along y stays one, and is flat along x."""
    ramp = torch.arange(6.0)[:, None].expand(6, 6).reshape(36, 1)
    found = resize_position_grid(torch.cat([torch.zeros(1, 1), ramp]), (6, 6), (3, 12))
    grid = found[1:].reshape(3, 12)
    torch.testing.assert_close(grid[1], torch.full((12,), 2.5))
    assert (grid.diff(dim=0) > 1).all()


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize('pretrained', [None, 'openai'])
def test_an_unknown_tower_is_a_config_error(pretrained):
    with pytest.raises(ConfigError, match="tower 'ViT-B-17' is unknown. Expected an open_clip"):
        Backbone('ViT-B-17', pretrained=pretrained)


@pytest.mark.parametrize(('tower', 'tag', 'other'), [
    ('ViT-B-32', 'openai', 'ViT-B-32-quickgelu'),
    ('ViT-B-16', 'dfn2b', 'ViT-B-16-quickgelu'),
])  # fmt: skip
def test_an_activation_that_does_not_match_the_weights_is_an_error(tower, tag, other):
    """open_clip only warns, and the embedding is subtly wrong from then on."""
    with pytest.raises(ConfigError, match=f'lacks QuickGELU but tag {tag!r} .* tower {other!r}'):
        Backbone(tower, pretrained=tag)
    check_activation(other, tag)


def test_an_unknown_tag_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=f"'tiny-vit' has no pretrained tag 'x'.*tags: {TAG}"):
        Backbone('tiny-vit', pretrained='x')


# --- no text ------------------------------------------------------------------------------------


def text_modules():
    """Text towers that live in this process."""
    return [o for o in gc.get_objects() if issubclass(type(o), TextTransformer)]


def test_no_text_tower_is_ever_built(monkeypatch, tmp_path):
    """TFI-FB: text-free inference; also while weights are being loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError('a text tower was built')

    monkeypatch.setattr(TextTransformer, '__init__', refuse)
    backbone = Backbone('tiny-vit', pretrained=TAG)
    publish(backbone.tower, tmp_path / f'tiny-vit.{TAG}.safetensors')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    backbone.load_published(TAG)
    assert text_modules() == []
    names = [name for name, _ in backbone.named_modules()] + list(backbone.state_dict())
    assert not [n for n in names if 'text' in n or 'token_embedding' in n]


# --- published weights --------------------------------------------------------------------------


def publish(tower, path):
    """Write a tower as open_clip publishes a model: with its text side."""
    state = {f'visual.{k}': v.clone() for k, v in tower.state_dict().items()}
    state |= {'text.token_embedding.weight': torch.zeros(100, 8), 'logit_scale': torch.ones(())}
    if path.suffix == '.safetensors':
        save_file(state, path)
    else:
        torch.save({'state_dict': {f'module.{k}': v for k, v in state.items()}}, path)


@pytest.mark.parametrize('suffix', ['.safetensors', '.bin', '.pt'])
def test_a_tower_file_put_there_by_hand_is_used(monkeypatch, tmp_path, suffix):
    """What a robot without internet needs; no network is touched."""
    published = build('tiny-vit', seed=1)
    publish(published.tower, tmp_path / f'tiny-vit.{TAG}{suffix}')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    monkeypatch.setattr(towers_module, 'download_pretrained', None)
    backbone = build('tiny-vit', seed=2)
    assert backbone.state_sha256() != published.state_sha256()
    backbone.load_published(TAG)
    assert backbone.state_sha256() == published.state_sha256()


def test_only_the_image_tower_is_read_from_a_published_file(monkeypatch, tmp_path):
    """The text side of a large model is gigabytes that a robot may not have."""
    publish(build('tiny-vit').tower, tmp_path / f'tiny-vit.{TAG}.safetensors')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    read = []
    real = towers_module.safe_open

    class Recorder:
        def __init__(self, *args):
            self.file = real(*args)

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
    build('tiny-vit').load_published(TAG)
    assert read and all(key.startswith('visual.') for key in read)


@pytest.mark.parametrize('tower', ['tiny-vit', 'tiny-siglip'])
def test_published_positions_are_fitted_to_another_input_size(monkeypatch, tmp_path, tower):
    """Loading at another size equals loading at the native one and interpolating then."""
    published = build(tower, seed=1)
    publish(published.tower, tmp_path / f'{tower}.{TAG}.safetensors')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    wide, same = build(tower, (64, 128), seed=2), build(tower, (64, 128), seed=1)
    wide.load_published(TAG)
    for (key, found), expected in zip(
        wide.tower.state_dict().items(), same.tower.state_dict().values()
    ):
        assert torch.equal(found, expected), key


def test_a_state_of_the_built_size_is_loaded_as_it_is():
    """A grid that is not square is no published one, and is not interpolated."""
    source, target = build('tiny-vit', (64, 96), seed=1), build('tiny-vit', (64, 96), seed=2)
    target.load_native_state(source.tower.state_dict(), 'here')
    assert target.state_sha256() == source.state_sha256()


@pytest.mark.parametrize('damage', ['missing', 'extra', 'shape', 'another', 'empty'])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage):
    backbone = build('tiny-vit')
    before, state = backbone.state_sha256(), dict(build('tiny-vit', seed=1).tower.state_dict())
    if damage == 'missing':
        del state['ln_post.bias']
    elif damage == 'extra':
        state['ln_more.bias'] = torch.zeros(3)
    elif damage == 'shape':
        state['ln_post.bias'] = torch.zeros(3)
    else:
        state = dict(shared('tiny-siglip').tower.state_dict()) if damage == 'another' else {}
    with pytest.raises(WeightsError, match="here: does not fit tower 'tiny-vit': .* differ"):
        backbone.load_native_state(state, 'here')
    assert backbone.state_sha256() == before


def test_without_network_and_file_the_error_names_the_file_and_its_place(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        build('tiny-vit').load_published(TAG)
    message = str(caught.value)
    assert 'open_clip_model.safetensors of https://huggingface.co/vlm-depth-test/' in message
    assert f'to {tmp_path}/tiny-vit.{TAG}.safetensors' in message


def test_a_tower_without_a_tag_cannot_be_fetched():
    with pytest.raises(WeightsError, match="'tiny-vit' has neither embedded weights nor"):
        build('tiny-vit').load_published(None)


class Planted:
    """Unpickled, it would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize('write', [
    lambda bomb, path: torch.save({'visual.conv1.weight': bomb}, path),
    lambda bomb, path: path.write_bytes(pickle.dumps(bomb, protocol=2)),
    lambda bomb, path: path.write_bytes(b'not a tower at all'),
], ids=['torch', 'pickle', 'noise'])  # fmt: skip
def test_a_tower_file_is_never_executed(monkeypatch, tmp_path, write):
    flag = tmp_path / 'executed'
    write(Planted(f'touch {flag}'), tmp_path / f'tiny-vit.{TAG}.pt')
    monkeypatch.setenv('VLM_DEPTH_TOWERS', str(tmp_path))
    with pytest.raises(WeightsError, match='not a readable tower file'):
        build('tiny-vit').load_published(TAG)
    assert not flag.exists()


# --- identity -----------------------------------------------------------------------------------


def test_the_hash_sees_names_values_and_nothing_else():
    state = {'b': torch.tensor([1.0, 2.0]), 'a': torch.tensor(3)}
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    assert state_sha256(state) == state_sha256({k: v.clone() for k, v in state.items()})
    assert state_sha256(state) != state_sha256({**state, 'a': torch.tensor(4)})
    assert state_sha256(state) != state_sha256({'c': state['b'], 'a': state['a']})
    changed = state['b'].clone()
    changed[1] = torch.nextafter(changed[1], torch.tensor(9.0))
    assert state_sha256(state) != state_sha256({**state, 'b': changed})


def test_the_hash_does_not_depend_on_memory_layout():
    """The estimator keeps weights channels-last; the tower is still the same one."""
    backbone = build('tiny-resnet')
    before = backbone.state_sha256()
    assert backbone.to(memory_format=torch.channels_last).state_sha256() == before


@pytest.mark.parametrize('tower', ['tiny-vit', 'tiny-siglip', 'pocket-tower'])
def test_a_deep_copy_runs_on_its_own_weights(tower):
    """An averaged copy in training must not read the original's."""
    backbone = build(tower)
    image = picture(backbone.spec.input_hw)
    before = backbone(image, []).pooled
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for p in backbone.parameters():
            p.mul_(0.5)
    assert torch.equal(other(image, []).pooled, before)
    assert not torch.equal(backbone(image, []).pooled, before)
