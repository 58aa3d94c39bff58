"""Dark places: corners of the room, and the floor where something stands on it or close above."""

import cv2
import numpy as np
from vlm_depth_ros.tools.textures import remap

_CELL_M = 0.04
_DARKEST = np.float32(0.6)


class Contact:
    """How much of the diffuse light reaches a place: a picture of the floor, and wall distances.

    What stands on the floor takes light from the floor about it (and from its own foot); this
    tells the eye where it stands, which a lamp's soft shadow alone does not.
    """

    def __init__(self, solids):
        """Draw the outlines of all solids but the room, the lower ones darker, and blur them."""
        self._center = solids[0].center_m.astype(np.float32)
        self._half = solids[0].half_m.astype(np.float32)
        low = [s.center_m[2] - np.abs(s.rotation[2]) @ s.half_m for s in solids]
        shape = np.ceil(2 * self._half[1::-1] / _CELL_M).astype(int) + 1
        plan = np.zeros(shape, np.float32)
        for number in np.argsort(low)[::-1]:
            solid, weight = solids[number], float(np.exp(-5 * max(low[number], 0)))
            # Rugs and floor marks are floor themselves.
            thick = solid.half_m[2] > 0.02
            if solid.kind == 'room' or weight < 0.05 or not thick:
                continue
            x, y = solid.half_m[:2]
            ring = np.array([(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)]) @ solid.rotation.T
            at = (ring + solid.center_m)[:, :2] - self._center[:2] + self._half[:2]
            cv2.fillConvexPoly(plan, np.rint(at / _CELL_M * 16).astype(np.int32), weight, shift=4)
        near = cv2.GaussianBlur(plan, (0, 0), 0.05 / _CELL_M)
        self._plan = _DARKEST * (0.6 * near + 0.4 * cv2.GaussianBlur(plan, (0, 0), 0.25 / _CELL_M))

    def open_share(self, p: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Share (N,) of the diffuse light at points and normals (3, N) float32."""
        gap = self._half[:, None] - np.abs(p - self._center[:, None])
        near = np.exp(np.maximum(gap, 0) * np.float32(-4)) * (1 - np.abs(n))
        share = np.prod(1 - np.float32(0.4) * near, axis=0)
        foot = np.flatnonzero((p[2] < 0.4) & ((p[2] < 0.03) | (n[2] < 0.5)))
        if foot.size:
            at = (p[:2, foot] - (self._center - self._half)[:2, None]) / np.float32(_CELL_M)
            dark = remap(self._plan, at[0], at[1])[:, 0]
            share[foot] *= 1 - dark * np.exp(np.float32(-8) * p[2, foot])
        return share
