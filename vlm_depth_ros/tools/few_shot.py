"""DepthBLIP-2's few-shot fitting: the depths of its bins, from a handful of measured images.

Only the network of the bins learns, and it never sees an image. So an image is asked once: what
is kept of it is how much each bin weighs at each measured pixel.
"""

from collections.abc import Sequence

import torch
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.core.preprocess import network_input, to_camera_grid, upload
from vlm_depth_ros.files.pairs import Pair
from vlm_depth_ros.tools.metrics import Protocol
from vlm_depth_ros.tools.progress import steps

EPOCHS, BATCH, LR, WEIGHT_DECAY = 50, 16, 1e-3, 0.01
EPOCHS_PER_STAGE, RATE_OF_NEXT = 20, 0.1


def fit_bins(
    model: DepthModel, images: Sequence[Pair], protocol: Protocol, seed: int = 0
) -> dict[str, object]:
    """Fit the learned bins of a head ``depthblip2`` in place, as the official code does.

    Args:
        model: With stored phrases, its tower loaded and frozen.
        images: Officially 16.
        protocol: Which pixels count.
        seed: Of the start, the order and the dropout.

    Returns:
        A record: loss before and after, in metres, the bins and how they were fitted.

    Raises:
        InputError: If an image or its depth cannot be read, or no pixel of it counts.
    """
    torch.manual_seed(seed)
    head, mlp = model.head, model.head.mlp
    for layer in mlp:
        if hasattr(layer, 'reset_parameters'):
            layer.reset_parameters()
    pixels = [weighed_pixels(model, image, protocol) for image in steps(images, 'asking')]
    before = bins_loss(head.bins_m().detach(), pixels).item()
    optimiser = torch.optim.AdamW(mlp.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, EPOCHS_PER_STAGE, RATE_OF_NEXT)
    mlp.train()
    for _ in steps(range(EPOCHS), 'fitting'):
        for batch in torch.randperm(len(pixels)).split(BATCH):
            optimiser.zero_grad()
            bins_loss(head.bins_m(), [pixels[i] for i in batch]).backward()
            optimiser.step()
        schedule.step()
    mlp.eval()
    bins_m = head.bins_m().detach()
    return {
        'trained': "the bins, by DepthBLIP-2's recipe",
        'images': [str(image.rgb.name) for image in images],
        'epochs': EPOCHS,
        'seed': seed,
        'loss_before_m': before,
        'loss_m': bins_loss(bins_m, pixels).item(),
        'bins_m': bins_m.tolist(),
    }


def bins_loss(
    bins_m: torch.Tensor, pixels: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Half the mean absolute error and half the RMSE, in metres, over the pixels of all images."""
    error = torch.cat([weights @ bins_m - truth_m for weights, truth_m in pixels])
    return 0.5 * error.abs().mean() + 0.5 * error.square().mean().sqrt()


@torch.no_grad()
def weighed_pixels(
    model: DepthModel, image: Pair, protocol: Protocol
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) weights of the bins at the N measured pixels that count, and (N,) metres there.

    As officially, weights are the mean of those of the image and of the mirrored one.
    """
    frame, spec = image.load(), model.backbone.spec
    device = model.head.phrases.device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (spec.mean, spec.std))
    seen = network_input(upload(frame.rgb, device)[None], spec.input_hw, mean, std)
    one, mirrored = (
        model.head.shares(model.backbone(x, model.head.layers)) for x in (seen, seen.flip(3))
    )
    hw = frame.depth_m.shape
    weights = to_camera_grid(model.head.at_input_size((one + mirrored.flip(3)) / 2), hw)[0]
    truth_m = torch.from_numpy(frame.depth_m).to(device)
    counts = torch.from_numpy(protocol.mask(hw)).to(device)
    counts &= (truth_m > protocol.min_depth_m) & (truth_m < protocol.max_depth_m)  # not NaN
    if not counts.any():
        raise InputError(
            f'{image.depth}: no pixel inside the crop has a depth between '
            f'{protocol.min_depth_m:g} and {protocol.max_depth_m:g} m. Fit to other rows.'
        )
    return weights[:, counts].T.contiguous(), truth_m[counts]
