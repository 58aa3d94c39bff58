"""Where a piece of furniture stands."""

import math
from typing import NamedTuple


class Place(NamedTuple):
    """Where the frame of a piece of furniture lies in the room, and how it is turned."""

    x_m: float = 0.0
    y_m: float = 0.0
    z_m: float = 0.0
    yaw_rad: float = 0.0

    def at(self, x, y, z=0.0) -> tuple[float, float, float]:
        """A point of the piece's frame in the room's."""
        c, s = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return self.x_m + c * x - s * y, self.y_m + s * x + c * y, self.z_m + z
