"""The shipped numbers for Nav2, and its layers fed with clouds: of tensors, or of a live node."""

from pathlib import Path

from consumers.costmap import buffered, Source
from consumers.scene import Box, Robot
import yaml

NAV2 = Path(__file__).resolve().parent.parent / 'config' / 'nav2'
SAMPLE = yaml.safe_load((NAV2 / 'costmap_voxel.yaml').read_text(encoding='utf-8'))
COSTMAP = SAMPLE['local_costmap']['local_costmap']['ros__parameters']
DEPTH_NODE = SAMPLE['depth_node']['ros__parameters']

ROBOT = Robot()
CHAIR = Box((1.5, -0.25, 0.0), (1.9, 0.25, 0.8))
WALL = Box((5.0, -4.0, 0.0), (5.2, 4.0, 2.5))
FAR_WALL = Box((7.0, -9.0, 0.0), (7.2, 9.0, 2.5))


class Nav2:
    """A layer with the shipped parameters, fed with clouds."""

    def __init__(self, kind, sources=None, **changes):
        self.layer = kind(COSTMAP, COSTMAP['voxel_layer'])
        self.sources = [
            Source(**{**vars(source), **changes})
            for source in Source.all_of(COSTMAP['voxel_layer'])
            if sources is None or source.topic in sources
        ]
        self.passed_s = 0.0

    def see(self, clouds, pose=ROBOT.base_from_optical):
        """One update of the map; `pose` is what the transform tree says of the camera."""
        self.layer.update([buffered(clouds[s.topic], pose, s) for s in self.sources])
        self.passed_s += 1 / COSTMAP['update_frequency']
        return self

    def see_for_2_s(self, clouds):
        """As many updates of the map as there are in two seconds, with the same clouds."""
        for _ in range(int(2 * COSTMAP['update_frequency'])):
            self.see(clouds)

    def marked_in(self, low, high):
        """Number of lethal cells between two corners (x, y)."""
        cells = self.layer.marked()
        return ((cells >= low) & (cells <= high)).all(axis=1).sum()

    @property
    def chair(self):
        """Number of lethal cells where the chair stands or stood."""
        return self.marked_in((1.3, -0.4), (2.1, 0.4))
