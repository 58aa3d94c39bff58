"""Imports point one way, and each third-party library has its place: read from the source text."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'vlm_depth_ros'
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py'))

SEES = {
    'core': ('core',),
    'files': ('files', 'core'),
    'ros': ('ros', 'files', 'core'),
    'tools': ('tools', 'files', 'core'),
}
# Inside core a module imports only what stands above it; those in one line do not meet.
CORE_ORDER = (
    ('errors', 'threads', 'exact_fp32', 'downloads'),
    ('device_failures',),
    ('config', 'colormap', 'features', 'checks', 'fingerprint', 'tower_change', 'rvl', 'texts'),
    ('lens', 'scale', 'mounting', 'compressed_depth', 'cloud_options', 'tower_naming'),
    ('geometry',),
    ('frustum', 'camera_model'),
    ('preprocess', 'clouds', 'towers', 'devices', 'canonical', 'scale_ground', 'scale_ranges'),
    ('packing', 'scan', 'tower_module', 'options'),
    ('filters', 'temporal'),
    ('enlarging',),
    ('guided',),
    ('tower_state',),
    ('backbone', 'bins', 'confidence'),
    ('blip2_tower',),
    ('heads',),
    ('agreement', 'model', 'predictions', 'track', 'inference_graph'),
    ('graph_cache',),
    ('compiled',),
    ('engines',),
    ('exported', 'trial', 'half_precision', 'cuda_graphs'),
    ('first_way',),
    ('frames',),
    ('refine',),
    ('outputs',),
    ('estimator',),
    ('faster_engines', 'lean_eager'),
)
CORE_LEVEL = {name: level for level, names in enumerate(CORE_ORDER) for name in names}

ROS_SUFFIXES = ('_msgs', '_srvs', '_interfaces')
ROS = (
    'rclpy',
    'cv_bridge',
    'sensor_msgs_py',
    'tf2_ros',
    'ament_index_python',
    'rosidl_runtime_py',
)
# A library, and the only places that may import it (a file, or a folder with a slash).
FENCES = {
    'open_clip': (
        'core/backbone.py',
        'core/towers.py',
        'core/tower_module.py',
        'tools/text_towers.py',  # at a desk only
    ),
    'timm': ('core/backbone.py', 'core/tower_module.py'),
    'transformers': ('core/blip2_tower.py', 'tools/bench_peers.py'),
    'rosbags': ('files/bags.py',),
    'openvino': ('core/engines.py',),
    'onnxruntime': ('core/engines.py', 'tools/quantize.py', 'tools/teacher.py'),
    'onnx': ('core/inference_graph.py', 'tools/quantize.py'),
    'onnxscript': ('core/inference_graph.py',),
    'launch': (),
    'launch_ros': (),
    'matplotlib': (),
    # bag_messages hands frames to core.packing, which takes tensors.
    'torch': ('core/', 'tools/', 'files/bag_messages.py'),
    **{name: ('ros/',) for name in ROS},
}
TORCH_FREE = tuple(
    f'core/{n}.py'
    for n in (
        'errors', 'config', 'checks', 'lens', 'geometry', 'canonical', 'mounting', 'scale',
        'scale_ground', 'scale_ranges', 'options', 'cloud_options', 'compressed_depth', 'rvl',
        'texts', 'frustum', 'camera_model', 'threads',
    )
)  # fmt: skip
QUIET = ('core/', 'files/')


def imported(tree):
    """Yield (line, module) of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module.startswith('vlm_depth_ros') and node.module.count('.') < 2:
                # `from vlm_depth_ros.core import config` names the module last.
                yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)
            else:
                yield node.lineno, node.module


def our_import_faults(path, module):
    """Yield what is wrong with the file `path` importing our own `module`."""
    layer, (target, *rest) = path.split('/')[0], module.split('.')[1:] or ['']
    if layer in SEES and target in SEES and target not in SEES[layer]:
        yield f'{layer} must not import {target}'
    if path.startswith('core/') and target == 'core' and rest and path != 'core/__init__.py':
        here = path.split('/')[1].removesuffix('.py')
        there = rest[0]
        unknown = [name for name in (here, there) if name not in CORE_LEVEL]
        if unknown:
            yield f'{unknown[0]} has no place in CORE_ORDER'
        elif not (CORE_LEVEL[there] < CORE_LEVEL[here] or here == there == 'heads'):
            yield f'core/{here} must not import core/{there}'


def foreign_import_faults(path, module):
    """Yield what is wrong with the file `path` importing a third-party `module`."""
    top = module.split('.')[0]
    allowed = FENCES.get(top, ('ros/',) if top.endswith(ROS_SUFFIXES) else None)
    if allowed is not None and not path.startswith(allowed):
        yield f'{top} belongs in {", ".join(allowed) or "no module of the package"}'
    if top == 'torch' and path in TORCH_FREE:
        yield 'must work without torch'


def call_faults(path, node):
    """Yield what is wrong with a call in a library layer, which raises and logs only."""
    name = ast.unparse(node.func)
    noisy = ('print', 'exit', 'quit', 'sys.exit', 'os._exit', 'logging.basicConfig')
    if path.startswith(QUIET) and (name in noisy or name.startswith('sys.path.')):
        yield f'calls {name}()'


def faults(path, source):
    """Answer every broken rule of one module as `line: what`.

    Args:
        path: Relative to the package, with slashes: ``core/geometry.py``.
        source: Its text.
    """
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f'{node.lineno}: relative import')
        if isinstance(node, ast.Call):
            found += [f'{node.lineno}: {fault}' for fault in call_faults(path, node)]
    for line, module in imported(tree):
        check = our_import_faults if module.startswith('vlm_depth_ros') else foreign_import_faults
        found += [f'{line}: {fault}' for fault in check(path, module)]
        if path.endswith('__init__.py'):
            found.append(f'{line}: a package imports nothing')
    return found


@pytest.mark.parametrize('path', MODULES)
def test_module_keeps_to_its_layer(path):
    assert faults(path, (PACKAGE / path).read_text(encoding='utf-8')) == []


def test_every_layer_was_read():
    assert {path.split('/')[0] for path in MODULES} >= set(SEES)


PLANTED = {
    'core sees files': ('core/geometry.py', 'from vlm_depth_ros.files.pairs import Pair'),
    'core sees ros, lazily': ('core/model.py', 'def f():\n    import rclpy'),
    'core sees a message': ('core/packing.py', 'from sensor_msgs.msg import Image'),
    'files see ros': ('files/bags.py', 'import vlm_depth_ros.ros.messages'),
    'files see tools': ('files/bags.py', 'from vlm_depth_ros import tools'),
    'files see torch': ('files/images.py', 'import torch.nn'),
    'ros sees tools': ('ros/demo.py', 'from vlm_depth_ros.tools import metrics'),
    'tools see ros': ('tools/report.py', 'from vlm_depth_ros.ros.messages import image_to_rgb'),
    'tools see rclpy': ('tools/report.py', 'import rclpy.node'),
    'upwards in core': ('core/config.py', 'from vlm_depth_ros.core.geometry import from_fov'),
    'upwards, other spelling': ('core/config.py', 'from vlm_depth_ros.core import geometry'),
    'sideways in core': ('core/packing.py', 'from vlm_depth_ros.core.scan import scan_of'),
    'a head sees the model': ('core/heads/space_clip.py', 'import vlm_depth_ros.core.model'),
    'a module without a place': ('core/utils.py', 'import vlm_depth_ros.core.errors'),
    'open_clip elsewhere': ('core/model.py', 'import open_clip'),
    'transformers elsewhere': ('core/heads/depthblip2.py', 'from transformers import Blip2Model'),
    'rosbags elsewhere': ('files/bag_source.py', 'from rosbags.highlevel import AnyReader'),
    'launch in the package': ('ros/node.py', 'from launch import LaunchService'),
    'torch where there is none': ('core/geometry.py', 'import torch'),
    'a relative import': ('core/geometry.py', 'from . import errors'),
    'a package imports': ('core/__init__.py', 'from vlm_depth_ros.core.errors import InputError'),
    'core prints': ('core/model.py', "print('loading')"),
    'files exit': ('files/pairs.py', 'import sys\nsys.exit(1)'),
    'files change the path': ('files/pairs.py', "import sys\nsys.path.append('.')"),
}


@pytest.mark.parametrize(('path', 'source'), PLANTED.values(), ids=PLANTED.keys())
def test_planted_violation_is_found(path, source):
    assert faults(path, source) != []


FINE = {
    'ros sees files': ('ros/demo.py', 'from vlm_depth_ros.files import bags\nimport rclpy'),
    'tools see core': (
        'tools/train.py',
        'from vlm_depth_ros.core.estimator import Frame\nprint()',
    ),
    'heads see heads': ('core/heads/registry.py', 'from vlm_depth_ros.core.heads import base'),
    'the estimator packs': (
        'core/estimator.py',
        'from vlm_depth_ros.core.packing import gate_depth',
    ),
    'packing sees geometry': ('core/packing.py', 'import torch, vlm_depth_ros.core.geometry'),
    'the version': ('tools/cli.py', 'from vlm_depth_ros import __version__'),
}


@pytest.mark.parametrize(('path', 'source'), FINE.values(), ids=FINE.keys())
def test_lawful_import_passes(path, source):
    assert faults(path, source) == []
