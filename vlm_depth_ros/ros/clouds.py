"""Foreign point clouds to arrays: any layout that has x, y and z as floating point."""

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.texts import quoted

MOST_POINTS = 20_000
"""More are thinned to every n-th before anything is copied."""
_FLOATS = {PointField.FLOAT32: 'f4', PointField.FLOAT64: 'f8'}


def cloud_to_xyz(cloud: PointCloud2) -> np.ndarray:
    """Return (N, 3) float64 of a cloud, NaN points included, thinned to `MOST_POINTS`.

    Raises:
        InputError: If x, y or z is missing or no floating point, or the data are cut off.
    """
    size = cloud.width * cloud.height
    if size == 0:  # Then nothing bounds the sizes that the message claims.
        return np.empty((0, 3))
    fields = {field.name: field for field in cloud.fields}
    order = '>' if cloud.is_bigendian else '<'
    missing = [n for n in 'xyz' if n not in fields or fields[n].datatype not in _FLOATS]
    if missing:
        raise InputError(
            f'cloud has fields {quoted(" ".join(sorted(fields)))}: expected x, y and z as FLOAT32 '
            'or FLOAT64.'
        )
    formats = [order + _FLOATS[fields[n].datatype] for n in 'xyz']
    offsets = [fields[n].offset for n in 'xyz']
    ends = [offset + int(form[-1]) for offset, form in zip(offsets, formats)]
    rows_fit = cloud.row_step == cloud.width * cloud.point_step
    if max(ends) > cloud.point_step or not rows_fit or len(cloud.data) < size * cloud.point_step:
        raise InputError(
            f'cloud of {cloud.width} x {cloud.height} points of {cloud.point_step} bytes, rows of '
            f'{cloud.row_step}, has {len(cloud.data)} bytes: expected unpadded rows and '
            f'{size * cloud.point_step} bytes.'
        )
    kind = np.dtype(
        {'names': list('xyz'), 'formats': formats, 'offsets': offsets,
         'itemsize': cloud.point_step}
    )  # fmt: skip
    points = np.frombuffer(cloud.data, kind, size)[:: max(1, -(-size // MOST_POINTS))]
    with np.errstate(invalid='ignore'):  # A signalling NaN is missing too.
        return np.stack([points[n].astype(float) for n in 'xyz'], axis=1)
