"""A tiny feature network as an ONNX file, written byte by byte: no library for it is needed.

Field numbers are those of onnx.proto (ONNX IR 8).
"""

from pathlib import Path

STRIDES = (2, 4, 8, 16, 32)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _tensor(name: str) -> bytes:
    dims = b''.join(_part(1, _part(2, f'{name}_{axis}')) for axis in 'nchw')
    return _part(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, dims)))


def _pool(stride: int) -> bytes:
    ints = _number(8, stride) * 2
    return _part(1, 'image') + _part(2, f'stride{stride}') + _part(4, 'AveragePool') + b''.join(
        _part(5, _part(1, name) + ints + _number(20, 7)) for name in ('kernel_shape', 'strides')
    )


def write_pools(path: Path, strides=STRIDES) -> Path:
    """A network whose map of stride s is the mean over s x s pixels of its input ``image``."""
    graph = b''.join(_part(1, _pool(s)) for s in strides) + _part(2, 'pools')
    graph += _part(11, _tensor('image'))
    graph += b''.join(_part(12, _tensor(f'stride{s}')) for s in strides)
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _part(1, '') + _number(2, 13)))
    return path
