"""BLIP-2's image tower and the Q-Former that reads it, behind the contract of `Backbone`.

The Q-Former reads an image and a phrase together, so the phrases go through it with every image.
They come as vectors in front of its first layer: no tokenizer and no table of words is built.

B batch, K phrases, L tokens of the longest, Q queries, W their width, C width of the image tower.
"""

import math

import torch
from torch import nn
from vlm_depth_ros.core.backbone import Backbone
from vlm_depth_ros.core.config import require
from vlm_depth_ros.core.errors import DependencyError
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.fingerprint import state_sha256
from vlm_depth_ros.core.tower_module import resize_position_grid
from vlm_depth_ros.core.tower_state import TowerState
from vlm_depth_ros.core.towers import published_file, tensors_of, tower_tags

BLIP2_TOWERS = {
    'blip2-itm-vit-g': {
        'num_queries': 32,
        'vision': {
            'hidden_size': 1408, 'intermediate_size': 6144, 'num_hidden_layers': 39,
            'num_attention_heads': 16, 'image_size': 224, 'patch_size': 14,
        },
        'qformer': {
            'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
            'num_attention_heads': 12,
        },
    },
}  # fmt: skip
"""Image tower and Q-Former in the words of transformers' configs, by the name of the tower."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of BLIP-2's image processor: CLIP's."""
PARTS = ('vision_model.', 'qformer.', 'query_tokens')
"""What is read of a published file; its table of words and its projections stay there."""
POSITIONS = 'vision_model.embeddings.position_embedding'


class Blip2Backbone(Backbone):
    """BLIP-2's image tower and Q-Former behind the contract of `Backbone`.

    ``pooled`` is the class token behind the final norm. `ask` runs the Q-Former; a head finds it
    as ``Features.extras['ask']``. There is no embedding: BLIP-2 has one for each query.

    Args:
        tower: A key of `BLIP2_TOWERS`.
        input_hw: Network input size, multiples of the patch; None takes the tower's own.
        pretrained: Who published its weights.
        activation: None.
        module: None; share a `Blip2Backbone` instead.

    Raises:
        ConfigError: If an argument does not fit.
        DependencyError: If transformers is not installed.
    """

    def __init__(
        self,
        tower: str,
        input_hw: tuple[int, int] | None = None,
        pretrained: str | None = None,
        activation: str | None = None,
        module: nn.Module | None = None,
    ):
        TowerState.__init__(self)  # of Backbone only forward() is meant: open_clip builds nothing
        vision = BLIP2_TOWERS[tower]['vision']
        side, patch, width = (vision[k] for k in ('image_size', 'patch_size', 'hidden_size'))
        input_hw = tuple(input_hw) if input_hw else (side, side)
        tags = tower_tags(tower)
        require(
            pretrained is None or pretrained in tags,
            f'tower {tower!r} has no pretrained tag {pretrained!r}. Known tags: '
            f'{", ".join(tags) or "none"}.',
        )
        require(
            activation is None,
            f'tower_activation {activation!r} on tower {tower!r}: expected none.',
        )
        require(
            module is None,
            f'tower {tower!r} cannot be shared as a module: hand over the backbone of another '
            'estimator (DepthEstimator.backbone).',
        )
        require(
            not any(n % patch for n in input_hw),
            f'input size {input_hw} does not fit tower {tower!r}: both sides must be multiples '
            f'of {patch}.',
        )
        self.is_shared, self._published_sha256 = False, None
        self.tower = _Blip2Tower(tower)
        self.spec = BackboneSpec(
            tower=tower,
            is_hierarchical=False,
            widths=(width,) * (vision['num_hidden_layers'] + 1),
            strides=(patch,) * (vision['num_hidden_layers'] + 1),
            pooled_width=width,
            embedding_width=None,
            input_hw=input_hw,
            has_class_token=True,
            mean=MEAN,
            std=STD,
        )
        self._forward = self._blip2_vit
        embeddings = self.tower.vision_model.embeddings
        embeddings.position_embedding = nn.Parameter(
            self._fitted(embeddings.position_embedding.data)
        )

    def ask(self, last: torch.Tensor, pooled: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """What the queries say of each image beside each phrase, (B, K, Q, W), in float32.

        Args:
            last: (B, C, h, w), the map after the last block.
            pooled: (B, C).
            phrases: (K, L, W) vectors of words and positions, zeros behind the end of a phrase.
        """
        tower, count = self.tower, len(pooled)
        num = tower.query_tokens.shape[1]
        with torch.autocast(pooled.device.type, enabled=False):  # officially in float32, too
            patches = tower.vision_model.post_layernorm(last.float().flatten(2).transpose(1, 2))
            image = torch.cat([pooled.float()[:, None], patches], dim=1)
            tokens = torch.cat([tower.query_tokens.expand(len(phrases), -1, -1), phrases], dim=1)
            is_there = tokens.any(dim=2)
            is_there[:, :num] = True
            found = tower.qformer(
                query_embeds=tokens.repeat(count, 1, 1),
                query_length=num,
                attention_mask=is_there.long().repeat(count, 1),
                encoder_hidden_states=image.repeat_interleave(len(phrases), dim=0),
            )
        return found.last_hidden_state[:, :num].unflatten(0, (count, len(phrases)))

    def load_published(self, tag: str | None, file='') -> None:
        """As `TowerState.load_published`, from Hugging Face's file of the whole BLIP-2."""
        path = file or published_file(self.spec.tower, tag)
        self.load_native_state(tensors_of(path, PARTS), str(path))

    def load_native_state(self, state: dict[str, torch.Tensor], where: str) -> None:
        """As `TowerState.load_native_state`."""
        fitted = dict(state)
        if POSITIONS in state:
            fitted[POSITIONS] = self._fitted(state[POSITIONS])
        self.load_embedded_state(fitted, where)
        self._published_sha256 = state_sha256(state)

    def _fitted(self, positions: torch.Tensor) -> torch.Tensor:
        """(1, 1 + n, C) positions of a square grid on the grid of this input size."""
        side = math.isqrt(positions.shape[1] - 1)
        grid = tuple(n // self.spec.size_multiple for n in self.spec.input_hw)
        if side**2 != positions.shape[1] - 1 or grid == (side, side):
            return positions
        return resize_position_grid(positions[0], (side, side), grid)[None]

    def _blip2_vit(self, image, layers, want_embedding) -> Features:
        vision, states = self.tower.vision_model, {}

        def keep(layer):
            def hook(_, args, out=None):
                tokens = args if out is None else out
                states[layer] = tokens[0] if isinstance(tokens, tuple) else tokens

            return hook

        blocks = vision.encoder.layers
        hooks = [
            blocks[k - 1].register_forward_hook(keep(k))
            if k
            else blocks[0].register_forward_pre_hook(keep(0))
            for k in layers
        ]
        try:
            pooled = vision(image).last_hidden_state[:, 0]
        finally:
            for hook in hooks:
                hook.remove()
        grid = tuple(n // self.spec.size_multiple for n in self.spec.input_hw)
        maps = {k: states[k][:, 1:].transpose(1, 2).unflatten(2, grid) for k in layers}
        class_tokens = {k: states[k][:, 0] for k in layers}
        return Features(maps, pooled, extras={'ask': self.ask}, class_tokens=class_tokens)


class _Blip2Tower(nn.Module):
    """Vision model, Q-Former and queries of transformers' `Blip2ForImageTextRetrieval`."""

    def __init__(self, name: str):
        super().__init__()
        try:
            from transformers import (
                Blip2QFormerConfig,
                Blip2QFormerModel,
                Blip2VisionConfig,
                Blip2VisionModel,
            )
        except ImportError as err:
            raise DependencyError(
                f"tower {name!r} needs transformers: pip install 'vlm_depth_ros[blip2]'"
            ) from err
        sizes = BLIP2_TOWERS[name]
        width = sizes['qformer']['hidden_size']
        qformer = {'encoder_hidden_size': sizes['vision']['hidden_size'], **sizes['qformer']}
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**sizes['vision']))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(use_qformer_text_input=True, **qformer)
        )
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, sizes['num_queries'], width))
