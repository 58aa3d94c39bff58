"""Any open_clip image tower behind `core.features.Features`.

Only the vision tower is ever built; nothing here can read text.
"""

from collections.abc import Iterable

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
import torch
from torch import nn
import torch.nn.functional as F
from vlm_depth_ros.core.errors import ConfigError, InputError, reason_of
from vlm_depth_ros.core.features import BackboneSpec, Features
from vlm_depth_ros.core.tower_change import TowerChange
from vlm_depth_ros.core.tower_module import (
    adopted_tower,
    build_tower,
    native_hw,
    positions_hw,
    resize_position_grid,
)
from vlm_depth_ros.core.tower_state import TowerState
from vlm_depth_ros.core.towers import (
    check_activation,
    normalisation,
    own_tower_config,
    tower_config,
)


class Backbone(TowerState):
    """A frozen-able image tower that answers `Features`.

    Args:
        tower: open_clip architecture name.
        input_hw: Network input size; None takes the tower's own. Positions of a transformer are
            interpolated once to fit it.
        pretrained: open_clip tag; it fixes normalisation and is checked, not loaded here.
        activation: One of `ACTIVATIONS` in all blocks of a timm tower; None: as open_clip has it.
        module: A tower of this architecture that somebody else owns. It is used as it is, not
            copied, moved or trained, only put into evaluation mode.

    Raises:
        ConfigError: If the name, the tag, the activation or the input size does not fit, or
            `module` is another tower.
    """

    def __init__(
        self,
        tower: str,
        input_hw: tuple[int, int] | None = None,
        pretrained: str | None = None,
        activation: str | None = None,
        module: nn.Module | None = None,
    ):
        super().__init__()
        config = tower_config(tower)
        check_activation(tower, pretrained)
        native = native_hw(tower)
        input_hw = tuple(input_hw) if input_hw else native
        self.is_shared = module is not None
        self._published_sha256 = None
        if module is None:
            self.tower = build_tower(tower, activation)
        else:
            self.tower = adopted_tower(module, tower, activation)
            native = positions_hw(self.tower) or input_hw
        self._forward = self._choose_forward()
        if not self._is_hierarchical and input_hw != native:
            if self.is_shared:
                raise ConfigError(
                    f'the given tower {tower!r} takes {native} input, but {input_hw} is needed. '
                    'Build it for that size, or let the weights file load a tower of its own.'
                )
            self._resize_positions(tower, input_hw)
        self.spec = self._probe(tower, config, input_hw, normalisation(tower, pretrained))
        if self.is_shared:
            self.eval()
        multiple = self.spec.size_multiple
        if any(n % multiple for n in input_hw):
            raise ConfigError(
                f'input size {input_hw} does not fit tower {tower!r}: both sides must be '
                f'multiples of {multiple}.'
            )

    def forward(
        self,
        image: torch.Tensor,
        layers: Iterable[int],
        want_embedding: bool = False,
        change: TowerChange | None = None,
    ) -> Features:
        """Run the tower once.

        Args:
            image: (B, 3, H, W) normalised RGB; H and W as built for a transformer, multiples of
                the largest stride for a hierarchical tower.
            layers: Which ``maps`` to return.
            want_embedding: Also project and normalise the joint embedding.
            change: What a head puts between the blocks in this call; nothing is embedded then,
                and ``extras['is_changed']`` is true.

        Raises:
            InputError: If the image has a size that the tower was not built for.
            ConfigError: If a layer does not exist, or an embedding is asked of a tower without a
                trained projection.
        """
        hw, layers = tuple(image.shape[-2:]), sorted(set(layers))
        spec = self.spec
        if not self._is_hierarchical and hw != spec.input_hw:
            raise InputError(
                f'tower {spec.tower!r} was built for {spec.input_hw} input, got {hw}.'
            )
        if any(n % spec.size_multiple for n in hw):
            raise InputError(
                f'tower {spec.tower!r} got {hw} input: both sides must be multiples of '
                f'{spec.size_multiple}.'
            )
        if not all(0 <= k <= spec.num_layers for k in layers):
            raise ConfigError(
                f'tower {spec.tower!r} has layers 0 to {spec.num_layers}, asked for {layers}.'
            )
        if want_embedding and spec.embedding_width is None:
            raise ConfigError(f'tower {spec.tower!r} has no trained projection to embed with.')
        if change is not None:
            return self._changed_vit(image, layers, change)
        return self._forward(image, layers, want_embedding)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks that a head may change.

        Raises:
            ConfigError: If the tower is none of open_clip's own transformers.
        """
        if not isinstance(self.tower, VisionTransformer):
            raise ConfigError(
                f'tower {self.spec.tower!r} cannot be changed from the inside: that takes '
                "open_clip's own ViT, such as ViT-B-32-quickgelu."
            )
        return self.tower.transformer.resblocks

    @property
    def _is_hierarchical(self) -> bool:
        return self._forward in (self._resnet, self._timm_stages)

    @property
    def _has_class_token(self) -> bool:
        trunk = getattr(self.tower, 'trunk', None)
        return self._forward == self._native_vit or getattr(trunk, 'cls_token', None) is not None

    def _choose_forward(self):
        if isinstance(self.tower, VisionTransformer):
            return self._native_vit
        if not isinstance(self.tower, TimmModel):
            return self._resnet
        return self._timm_vit if hasattr(self.tower.trunk, 'blocks') and hasattr(
            self.tower.trunk, 'patch_embed'
        ) else self._timm_stages

    def _native_vit(self, image, layers, want_embedding) -> Features:
        tower, grid = self.tower, self.tower.grid_size
        tokens = tower._embeds(image)  # (B, 1 + h*w, C), after ln_pre
        last, states = tower.transformer.forward_intermediates(tokens, indices=_blocks(layers))
        states = ([tokens] if layers and layers[0] == 0 else []) + states
        pooled, _ = tower._pool(last)
        embedding = _unit(pooled @ tower.proj) if want_embedding else None
        maps, class_tokens = _apart(dict(zip(layers, states)), grid)
        return Features(maps, pooled, embedding, class_tokens=class_tokens)

    def _changed_vit(self, image, layers, change) -> Features:
        tokens, grid = self.tower._embeds(image), self.tower.grid_size
        states = [tokens]
        for index, block in enumerate(self.blocks):
            tokens = change.run(index, block, tokens)
            states.append(tokens)
        pooled, _ = self.tower._pool(tokens)
        maps, class_tokens = _apart({k: states[k] for k in layers}, grid)
        return Features(maps, pooled, extras={'is_changed': True}, class_tokens=class_tokens)

    def _timm_vit(self, image, layers, want_embedding) -> Features:
        trunk, embedded = self.tower.trunk, []
        # Towers without a class token do not all know the option.
        ask = {'return_prefix_tokens': True} if self._has_class_token else {}
        hook = trunk.blocks[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
        try:
            last, states = trunk.forward_intermediates(
                image, indices=_blocks(layers), norm=False, **ask
            )
        finally:
            hook.remove()
        states, prefixes = zip(*states) if ask else (states, ())
        if layers and layers[0] == 0:
            first, count = embedded[0], trunk.num_prefix_tokens
            grid = trunk.patch_embed.grid_size
            states = first[:, count:].transpose(1, 2).unflatten(2, grid), *states
            prefixes = (first[:, :count], *prefixes) if ask else ()
        found = self._with_timm_head(last, dict(zip(layers, states)), want_embedding)
        found.class_tokens = {k: prefix[:, 0] for k, prefix in zip(layers, prefixes)}
        return found

    def _timm_stages(self, image, layers, want_embedding) -> Features:
        trunk, stem = self.tower.trunk, []
        if not self._adds_stem:
            last, states = trunk.forward_intermediates(image, indices=layers or [0])
            return self._with_timm_head(last, dict(zip(layers, states)), want_embedding)
        hook = trunk.stem.register_forward_hook(lambda _, args, out: stem.append(out))
        try:
            last, states = trunk.forward_intermediates(image, indices=_blocks(layers))
        finally:
            hook.remove()
        states = (stem if layers and layers[0] == 0 else []) + list(states)
        return self._with_timm_head(last, dict(zip(layers, states)), want_embedding)

    def _resnet(self, image, layers, want_embedding) -> Features:
        states = self.tower.forward_intermediates(
            image, indices=sorted({*layers, 4}), intermediates_only=True
        )['image_intermediates']
        maps = dict(zip(sorted({*layers, 4}), states))
        # RN50's attention pool projects inside, so the mean of the last map stands in.
        pooled = maps[4].mean(dim=(2, 3))
        embedding = self._attention_pooled(maps[4]) if want_embedding else None
        extras = {'project_map': self.project_map}
        return Features({k: maps[k] for k in layers}, pooled, embedding, extras)

    def project_map(self, last: torch.Tensor) -> torch.Tensor:
        """Last map (B, C, h, w) of CLIP's ResNet in the joint space, (B, E, h, w), cell by cell.

        Value and output projection of the attention pool, without its attention and positions
        (MaskCLIP, Zhou et al., ECCV 2022). A head calls it as ``Features.extras['project_map']``;
        other towers have none.
        """
        pool = self.tower.attnpool
        return pool.c_proj(pool.v_proj(last.movedim(1, -1))).movedim(-1, 1)

    def _attention_pooled(self, last: torch.Tensor) -> torch.Tensor:
        pool = self.tower.attnpool
        if last.shape[2] * last.shape[3] + 1 != len(pool.positional_embedding):
            raise ConfigError(
                f'tower {self.spec.tower!r} embeds {self.tower.image_size} pixels input only: its '
                'attention pool has learned positions. Use that size, or ask for no embedding.'
            )
        return _unit(pool(last))

    def _with_timm_head(self, last, maps, want_embedding) -> Features:
        trunk = self.tower.trunk
        pooled = trunk.forward_head(last, pre_logits=True)
        embedding = None
        if want_embedding:  # what timm calls a classifier projects, or passes on
            embedding = _unit(self.tower.head(trunk.get_classifier()(pooled)))
        return Features(maps, pooled, embedding)

    @property
    def _adds_stem(self) -> bool:
        # FastViT and ConvNeXt return their stages only; the stem in front of them is a module.
        return hasattr(self.tower.trunk, 'stages') and hasattr(self.tower.trunk, 'stem')

    def _resize_positions(self, name: str, input_hw: tuple[int, int]) -> None:
        if isinstance(self.tower, TimmModel):
            # Of a convolutional stem and its patches together; patch_size is that of the latter.
            patch = self.tower.trunk.patch_embed.feat_ratio(as_scalar=False)
        else:
            patch = self.tower.patch_size
        if any(n % p for n, p in zip(input_hw, patch)):
            raise ConfigError(
                f'input size {input_hw} does not fit tower {name!r}: both sides must be '
                f'multiples of its patch size {tuple(patch)}.'
            )
        if isinstance(self.tower, TimmModel):
            self.tower.set_input_size(input_hw)
            return
        grid = tuple(n // p for n, p in zip(input_hw, patch))
        self.tower.positional_embedding = nn.Parameter(
            resize_position_grid(self.tower.positional_embedding.data, self.tower.grid_size, grid)
        )
        self.tower.image_size, self.tower.grid_size = input_hw, grid

    @torch.no_grad()
    def _probe(self, name, config, input_hw, normalisation) -> BackboneSpec:
        """Measure widths and strides by one forward pass: true for any architecture."""
        was_training = self.training
        self.eval()
        if self._forward == self._native_vit:
            count = len(self.tower.transformer.resblocks)
        elif self._forward == self._timm_vit:
            count = len(self.tower.trunk.blocks)
        elif self._forward == self._resnet:
            count = 4
        else:
            count = len(self.tower.trunk.feature_info) - (not self._adds_stem)
        hw = (64, 64) if self._is_hierarchical else input_hw
        try:
            grey = torch.zeros(1, 3, *hw, device=next(self.tower.parameters()).device)
            found = self._forward(grey, list(range(count + 1)), False)
        except Exception as err:  # towers that were not meant for this fail in their own ways
            raise ConfigError(
                f'tower {name!r} gives no maps at {hw} input ({reason_of(err)}). Expected a plain '
                'transformer, or a hierarchical tower that takes any input size.'
            ) from err
        self.train(was_training)
        is_own = own_tower_config(name) is not None
        return BackboneSpec(
            tower=name,
            is_hierarchical=self._is_hierarchical,
            widths=tuple(m.shape[1] for m in found.maps.values()),
            strides=tuple(hw[0] // m.shape[2] for m in found.maps.values()),
            pooled_width=found.pooled.shape[1],
            embedding_width=None if is_own else config['embed_dim'],
            input_hw=input_hw,
            has_class_token=self._has_class_token,
            mean=normalisation[0],
            std=normalisation[1],
        )


def _apart(states: dict[int, torch.Tensor], grid: tuple[int, int]) -> tuple[dict, dict]:
    """Of (B, 1 + h*w, C) tokens by layer the maps of the patches, and the class tokens."""
    maps = {k: s[:, 1:].transpose(1, 2).unflatten(2, grid) for k, s in states.items()}
    return maps, {k: s[:, 0] for k, s in states.items()}


def _blocks(layers: list[int]) -> list[int]:
    """Layer numbers as open_clip counts blocks; never empty, which it cannot read."""
    return [k - 1 for k in layers if k > 0] or [0]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return F.normalize(vector.float(), dim=-1)  # half precision would miss unit length
