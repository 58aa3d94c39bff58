"""The rows of a set as they are judged: number, scene and files."""

from dataclasses import dataclass
from pathlib import Path

from vlm_depth_ros.files.pairs import Pair, PAIRS_FILE, read_scenes
from vlm_depth_ros.files.samples import is_pairs, open_samples


@dataclass(frozen=True)
class Row:
    """One image that is to be judged; nothing is read yet."""

    number: int
    """Its place in the set, from 0, as ``--rows`` counts."""
    name: str
    scene: str
    pair: Pair


def open_rows(path: str | Path, format: str | None = None) -> list[Row]:
    """List a set; raises as `open_samples`.

    A row belongs to the scene that a column of pairs.csv names, else to the one that the format
    knows, else (a pairs.csv without such a column) to its folder.
    """
    samples, path = open_samples(path, format), Path(path)
    scenes = [sample.scene for sample in samples]
    if format in (None, 'pairs') and is_pairs(path):
        named = read_scenes(path.parent if path.name == PAIRS_FILE else path)
        scenes = [column or folder for column, folder in zip(named, scenes)]
    return [Row(i, s.name, scene, s) for i, (s, scene) in enumerate(zip(samples, scenes))]
