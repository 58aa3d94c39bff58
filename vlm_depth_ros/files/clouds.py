"""Point clouds in PLY files: binary little endian, float x y z, uchar red green blue if known."""

from pathlib import Path

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files.atomic import atomic_file

_TYPES = {
    'char': 'i1', 'int8': 'i1', 'uchar': 'u1', 'uint8': 'u1', 'short': 'i2', 'int16': 'i2',
    'ushort': 'u2', 'uint16': 'u2', 'int': 'i4', 'int32': 'i4', 'uint': 'u4', 'uint32': 'u4',
    'float': 'f4', 'float32': 'f4', 'double': 'f8', 'float64': 'f8',
}  # fmt: skip
_MAX_HEADER_BYTES = 65536


def write_ply(path: str | Path, points: np.ndarray, rgb: np.ndarray | None = None) -> int:
    """Write a cloud atomically; points that are not finite are left out, as viewers choke on them.

    Args:
        path: The file.
        points: (N, 3) metres, in whatever frame the caller means.
        rgb: (N, 3) uint8, or None.

    Returns:
        The number of points written.

    Raises:
        InputError: If the shapes do not fit, or the file cannot be written.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f'{path}: points of shape {points.shape}; expected (N, 3).')
    if rgb is not None and (rgb.shape != points.shape or rgb.dtype != np.uint8):
        raise InputError(f'{path}: rgb is {rgb.dtype} {rgb.shape}; expected uint8 {points.shape}.')
    finite = np.isfinite(points).all(axis=1)
    fields = [(n, '<f4') for n in 'xyz']
    if rgb is not None:
        fields += [(n, 'u1') for n in ('red', 'green', 'blue')]
    vertices = np.empty(int(finite.sum()), fields)
    for axis, name in enumerate('xyz'):
        vertices[name] = points[finite, axis]
    if rgb is not None:
        for channel, name in enumerate(('red', 'green', 'blue')):
            vertices[name] = rgb[finite, channel]
    kinds = {'<f4': 'float', 'u1': 'uchar'}
    header = ['ply', 'format binary_little_endian 1.0', f'element vertex {len(vertices)}']
    header += [f'property {kinds[form]} {name}' for name, form in fields]
    with atomic_file(path) as temporary, temporary.open('wb') as file:
        file.write('\n'.join([*header, 'end_header', '']).encode('ascii'))
        file.write(vertices.tobytes())
    return len(vertices)


def read_ply(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the vertices of a binary little-endian PLY file.

    Returns:
        (N, 3) float32 points and (N, 3) uint8 colours, or None where the file has none.

    Raises:
        InputError: If the file is missing, of another form, or cut off.
    """
    path = Path(path)
    try:
        with path.open('rb') as file:
            count, form = _header(path, file)
            wanted = count * form.itemsize
            present = path.stat().st_size - file.tell()
            if wanted > present:
                raise InputError(
                    f'{path}: is cut off: {count} points need {wanted} bytes, {present} are there.'
                )
            vertices = np.frombuffer(file.read(wanted), form)
    except OSError as err:
        raise InputError(f'{path}: cannot be read ({err.strerror}); expected a PLY file.') from err
    points = np.stack([vertices[n] for n in 'xyz'], axis=1).astype(np.float32)
    colours = ('red', 'green', 'blue')
    if not all(n in form.names and form[n] == np.uint8 for n in colours):
        return points, None
    return points, np.stack([vertices[n] for n in colours], axis=1)


def _header(path: Path, file) -> tuple[int, np.dtype]:
    """Number of vertices and their record; `file` stands at the first of them afterwards."""
    raw = file.read(_MAX_HEADER_BYTES)
    head, end, _ = raw.partition(b'end_header\n')
    lines = [line.split() for line in head.decode('ascii', 'replace').splitlines()]
    if not end or not lines or lines[0] != ['ply']:
        raise InputError(f'{path}: is not a PLY file (starts with {raw[:8]!r}).')
    if ['format', 'binary_little_endian', '1.0'] not in lines:
        raise InputError(f'{path}: expected a PLY of format binary_little_endian 1.0.')
    count, fields, element = None, [], None
    try:
        for line in lines:
            if line[:1] == ['element']:
                element = line[1]
                if element == 'vertex':
                    count = int(line[2])
                elif count is None:
                    raise InputError(f'{path}: element {element!r} before the vertices.')
            elif line[:1] == ['property'] and element == 'vertex':
                fields.append((line[2], '<' + _TYPES[line[1]]))
        form = np.dtype(fields)
        missing = {'x', 'y', 'z'} - set(form.names or ())
    except (KeyError, IndexError, ValueError, TypeError) as err:
        raise InputError(f'{path}: the PLY header is damaged or unknown ({err}).') from err
    if count is None or count < 0 or missing:
        raise InputError(f'{path}: the PLY header names no vertices with x, y and z.')
    file.seek(len(head) + len(end))
    return count, form
