"""The rows of a set as they are judged: number, scene and files."""

import csv
from dataclasses import dataclass
from pathlib import Path

from vlm_depth_ros.files.pairs import Pair, PAIRS_FILE
from vlm_depth_ros.files.samples import is_pairs, open_samples

SCENE_COLUMNS = ('scene', 'sequence')
"""Columns of a pairs.csv that name the scene of a row; the first that is there counts."""


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
    samples = open_samples(path, format)
    named = _scene_column(Path(path)) if format in (None, 'pairs') else []
    scenes = named or [sample.scene for sample in samples]
    return [Row(i, s.name, scene, s) for i, (s, scene) in enumerate(zip(samples, scenes))]


def _scene_column(path: Path) -> list[str]:
    """What the scene column of a pairs.csv says, line by line; nothing where there is none."""
    if not is_pairs(path):
        return []
    file = path if path.name == PAIRS_FILE else path / PAIRS_FILE
    with file.open(encoding='utf-8-sig', newline='') as lines:
        table = csv.DictReader(lines)
        column = next((c for c in SCENE_COLUMNS if c in table.fieldnames), None)
        return [row[column] for row in table] if column else []
