"""Image towers of Hugging Face's CLIP and SigLIP, of timm and of DINOv2 under open_clip's names.

Values stay as they are; only names change, and the three projections of an attention are kept
apart by one library and stacked by the other. Checked against ``transformers``' own forward.
"""

from collections.abc import Iterable, Mapping
import re

import torch
from vlm_depth_ros.core.fingerprint import state_sha256

PROJECTION = 'proj'
"""A native transformer's final projection to the joint space; Hugging Face's vision models end
before it, so a tower without one is still the same tower."""
_ANCHOR = 'embeddings.patch_embedding.weight'
_CLIP_PROJECTION = 'visual_projection.weight'
_TIMM_ANCHOR = 'patch_embed.proj.weight'
"""Of a transformer that timm or DINOv2's authors published by itself; open_clip's wrapper around
it is called ``trunk``."""

_CLIP = {
    'embeddings.class_embedding': 'class_embedding',
    'embeddings.patch_embedding': 'conv1',
    'embeddings.position_embedding.weight': 'positional_embedding',
    'pre_layrnorm': 'ln_pre',
    'post_layernorm': 'ln_post',
    'layer_norm1': 'ln_1',
    'layer_norm2': 'ln_2',
    'mlp.fc1': 'mlp.c_fc',
    'mlp.fc2': 'mlp.c_proj',
    'self_attn.out_proj': 'attn.out_proj',
    'encoder.layers': 'transformer.resblocks',
}
_SIGLIP = {
    'embeddings.patch_embedding': 'trunk.patch_embed.proj',
    'embeddings.position_embedding.weight': 'trunk.pos_embed',
    'post_layernorm': 'trunk.norm',
    'layer_norm1': 'norm1',
    'layer_norm2': 'norm2',
    'self_attn.out_proj': 'attn.proj',
    'encoder.layers': 'trunk.blocks',
    'head.probe': 'trunk.attn_pool.latent',
    'head.attention.out_proj': 'trunk.attn_pool.proj',
    'head.layernorm': 'trunk.attn_pool.norm',
    'head.mlp': 'trunk.attn_pool.mlp',
}
_DINOV2 = {'mlp.w12': 'mlp.fc1', 'mlp.w3': 'mlp.fc2'}
"""The gated layers of the authors' ViT-g; its other names, and all of the smaller ones, are
timm's."""
_TRAINING_ONLY = ('position_ids', 'mask_token')


def image_tower_keys(keys: Iterable[str]) -> dict[str, str]:
    """The keys of the image tower in a published file, each with its name inside the tower.

    Open_clip puts ``visual.`` in front, Hugging Face ``vision_model.`` or nothing; the state of a
    bare tower is taken whole, but for what only its training reads.
    """
    keys = [k for k in keys if not k.endswith(_TRAINING_ONLY)]
    if any(k.startswith('visual.') for k in keys):
        prefix = 'visual.'
    else:
        prefix = next((k[: -len(_ANCHOR)] for k in keys if k.endswith(_ANCHOR)), '')
    wanted = {k: k[len(prefix):] for k in keys if k.startswith(prefix)}
    if prefix and _CLIP_PROJECTION in keys:
        wanted[_CLIP_PROJECTION] = _CLIP_PROJECTION
    return wanted


def to_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An image tower's state in open_clip's names and layout, float32 where it is floating.

    Args:
        state: By the names that `image_tower_keys` gives: Hugging Face's CLIP or SigLIP, a bare
            transformer of timm or DINOv2, or open_clip's already.
    """
    if _ANCHOR in state:
        state = _from_siglip(state) if 'head.probe' in state else _from_clip(state)
    elif _TIMM_ANCHOR in state:
        state = {f'trunk.{k}': v for k, v in _renamed(state, _DINOV2).items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _from_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = _renamed(_stacked(state, 'attn.in_proj_{}'), _CLIP)
    if _CLIP_PROJECTION in named:
        named[PROJECTION] = named.pop(_CLIP_PROJECTION).T.contiguous()
    return named


def _from_siglip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = _renamed(_stacked(state, 'attn.qkv.{}'), _SIGLIP)
    named['trunk.pos_embed'] = named['trunk.pos_embed'][None]
    for kind in ('weight', 'bias'):
        stacked = named.pop(f'head.attention.in_proj_{kind}')
        query, rest = stacked.tensor_split([len(stacked) // 3])
        named[f'trunk.attn_pool.q.{kind}'] = query
        named[f'trunk.attn_pool.kv.{kind}'] = rest
    return named


def _stacked(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Query, key and value of each attention as one tensor, called `name` within its block."""
    found = dict(state)
    for key in state:
        match = re.fullmatch(r'(.+\.)self_attn\.q_proj\.(weight|bias)', key)
        if match:
            block, kind = match.groups()
            parts = [found.pop(f'{block}self_attn.{p}_proj.{kind}') for p in 'qkv']
            found[block + name.format(kind)] = torch.cat(parts)
    return found


def _renamed(
    state: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        found[key] = value
    return found


def hugging_face_clip_sha256(state: Mapping[str, torch.Tensor]) -> set[str]:
    """Hashes that transformers' state of this CLIP tower has, before and after version 5.3.

    For checkpoints that record one (SPACE-CLIP's layer study): sorted keys, each with its raw
    bytes. Newer versions dropped the level ``vision_model.`` from the keys.

    Args:
        state: Open_clip's names; the projection is ignored.
    """
    theirs = {}
    for key, value in state.items():
        if key == PROJECTION:
            continue
        match = re.fullmatch(r'(.+)\.attn\.in_proj_(weight|bias)', key)
        parts = {key: value}
        if match:
            block, kind = match.groups()
            split = value.chunk(3)
            parts = {f'{block}.self_attn.{p}_proj.{kind}': v for p, v in zip('qkv', split)}
        theirs |= _renamed(parts, {ours: name for name, ours in _CLIP.items()})
    return {
        state_sha256({prefix + k: v for k, v in theirs.items()})
        for prefix in ('', 'vision_model.')
    }
