"""Small real files for the tests of the desk tools: a pairs.csv folder and a weights file."""

from pathlib import Path

import numpy as np
import torch
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.core.model import DepthModel, save_model
from vlm_depth_ros.files.pairs import write_pairs
from vlm_depth_ros.files.source import SourceFrame

CAMERA = CameraIntrinsics(52.0, 52.0, 31.5, 23.5, 64, 48)
MODEL = {
    'tower': 'pocket-tower',
    'input_hw': [64, 64],
    'depth_range_m': [0.1, 10.0],
    'camera': {'fx_per_width': 0.8, 'fy_per_height': 1.08},
    'head': {'name': 'space_clip', 'widths': [8, 8, 8, 8], 'film_width': 8, 'output_width': 4},
}


def frame(depth_m, seed: int = 0, **known) -> SourceFrame:
    """A 48 x 64 picture of noise; `depth_m` is a number or a map."""
    rgb = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    depth_m = np.full((48, 64), depth_m, np.float32) if np.isscalar(depth_m) else depth_m
    return SourceFrame(rgb, intrinsics=CAMERA, depth_m=depth_m, **known)


def write_set(folder: Path, depths) -> Path:
    """A pairs.csv folder with one frame for each depth."""
    write_pairs(folder, (frame(depth, seed) for seed, depth in enumerate(depths)))
    return folder


def write_four(folder: Path) -> Path:
    """A pairs.csv folder of four rows: two slopes, a wall and a longer slope."""
    slope = np.linspace(1, 3, 64, dtype=np.float32)[None].repeat(48, 0)
    return write_set(folder, [slope, slope[:, ::-1].copy(), 2.0, slope * 1.5])


def write_weights(path: Path) -> Path:
    """A whole weights file of an untrained network, tower embedded."""
    torch.manual_seed(0)
    model = DepthModel(ModelConfig.from_dict(MODEL))
    save_model(path, model, name='untrained', embed_tower=True)
    return path
