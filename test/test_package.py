"""What an installation promises: metadata, commands, share files, and that the two ways agree."""

import ast
import contextlib
import importlib
from importlib import metadata
import io
import os
from pathlib import Path
import re
import runpy
import shutil
import stat
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree

import pytest
import vlm_depth_ros

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'vlm_depth_ros'
MODULES = sorted(PACKAGE.rglob('*.py'))
COMMANDS = {
    'depth_node': 'vlm_depth_ros.ros.node:main',
    'camera_player': 'vlm_depth_ros.ros.camera_player:main',
    'vlm-depth': 'vlm_depth_ros.tools.cli:main',
}
MAX_LINES = 350
# Import name -> name on PyPI, where they differ.
PYPI_NAMES = {'cv2': 'opencv-python-headless', 'open_clip': 'open_clip_torch', 'yaml': 'PyYAML'}
OPTIONAL = {'h5py', 'onnx', 'onnxruntime', 'onnxscript', 'openvino', 'scipy', 'transformers'}
TEXT = {'', '.cfg', '.json', '.md', '.py', '.rst', '.rviz', '.toml', '.xml', '.yaml', '.yml'}
CACHES = {'__pycache__', '.pytest_cache', '.ruff_cache'}

installed_only = pytest.mark.skipif(
    not os.environ.get('VLM_DEPTH_INSTALLED'),
    reason='runs from `make test`, on the installed package',
)


@pytest.fixture(scope='module')
def manifest():
    """package.xml."""
    return ElementTree.parse(ROOT / 'package.xml').getroot()


@pytest.fixture(scope='module')
def setup_arguments():
    """The keyword arguments of setup()."""
    setuptools = pytest.importorskip('setuptools', reason='setuptools reads setup.py')
    given = {}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(ROOT)
        patch.setattr(setuptools, 'setup', given.update)
        runpy.run_path('setup.py')
    return given


def top_level_imports():
    """Answer (file, first part of the name) of every import in the package."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name.split('.')[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield path.name, node.module.split('.')[0]


def third_party():
    """Answer the names of imported libraries, ours and the standard ones left out."""
    ours = {'vlm_depth_ros', *sys.stdlib_module_names}
    return {name for _, name in top_level_imports()} - ours


def is_ros(name):
    return name.endswith(('_msgs', '_srvs', '_interfaces')) or name in (
        'rclpy', 'cv_bridge', 'sensor_msgs_py', 'tf2_ros', 'ament_index_python'
    )  # fmt: skip


def test_package_xml_is_format_3_of_an_ament_python_package(manifest):
    assert manifest.get('format') == '3'
    assert manifest.findtext('name') == 'vlm_depth_ros'
    assert manifest.findtext('export/build_type') == 'ament_python'
    assert manifest.findtext('description').strip()
    assert manifest.find('maintainer').get('email')


def test_package_xml_passes_the_checks_of_catkin_pkg():
    package = pytest.importorskip('catkin_pkg.package', reason='catkin_pkg comes with colcon')
    warnings = []
    package.parse_package(str(ROOT / 'package.xml'), warnings=warnings)
    assert warnings == []


def test_licences_of_code_and_weights_are_named_and_there(manifest):
    licences = {licence.text: licence.get('file') for licence in manifest.findall('license')}
    assert 'Apache-2.0' in licences
    assert any('weights' in name.lower() for name in licences)
    missing = [name for name in licences.values() if not (ROOT / name).is_file()]
    assert missing == []
    assert 'Apache License' in (ROOT / 'LICENSE').read_text(encoding='utf-8')


def test_versions_agree(manifest, setup_arguments):
    changelog = (ROOT / 'CHANGELOG.rst').read_text(encoding='utf-8')
    newest = re.search(r'^(\d+\.\d+\.\d+)', changelog, re.MULTILINE).group(1)
    assert {
        manifest.findtext('version'),
        setup_arguments['version'],
        vlm_depth_ros.__version__,
        newest,
    } == {vlm_depth_ros.__version__}


def test_commands_are_the_ones_outsiders_rely_on(setup_arguments):
    scripts = setup_arguments['entry_points']['console_scripts']
    assert dict(re.split(r'\s*=\s*', script) for script in scripts) == COMMANDS


@pytest.mark.parametrize('target', COMMANDS.values(), ids=COMMANDS.keys())
def test_command_leads_to_a_function(target):
    module, function = target.split(':')
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as err:
        if err.name and is_ros(err.name.split('.')[0]):
            pytest.skip(f'{err.name} is not installed: no ROS here')
        raise
    assert callable(getattr(loaded, function))


def test_every_launch_and_config_file_is_shared(setup_arguments):
    shared = {(target, path) for target, paths in setup_arguments['data_files'] for path in paths}
    expected = {
        ('share/ament_index/resource_index/packages', 'resource/vlm_depth_ros'),
        ('share/vlm_depth_ros', 'package.xml'),
    }
    for top in ('launch', 'config'):
        for path in (ROOT / top).rglob('*'):
            if path.is_file() and not CACHES.intersection(path.parts):
                inside = path.relative_to(ROOT)
                expected.add(
                    (f'share/vlm_depth_ros/{inside.parent.as_posix()}', inside.as_posix())
                )
    assert shared == expected


def test_assets_are_package_data(setup_arguments):
    patterns = setup_arguments['package_data']['vlm_depth_ros']
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    assert packed == {path for path in (PACKAGE / 'assets').rglob('*') if path.is_file()}


def test_ros_packages_in_use_are_declared(manifest):
    declared = {depend.text for depend in manifest.findall('exec_depend')}
    assert {name for name in third_party() if is_ros(name)} - declared == set()


def test_python_libraries_in_use_are_requirements(setup_arguments):
    required = {
        re.split(r'[^\w.-]', line)[0].lower() for line in setup_arguments['install_requires']
    }
    used = {name for name in third_party() if not is_ros(name)} - OPTIONAL
    assert {PYPI_NAMES.get(name, name).lower() for name in used} - required == set()


def test_optional_libraries_are_extras(setup_arguments):
    extras = ' '.join(sum(setup_arguments['extras_require'].values(), []))
    assert {name for name in third_party() & OPTIONAL if name not in extras} == set()


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_is_short_and_old_python_can_read_it(path):
    text = path.read_text(encoding='utf-8')
    ast.parse(text, feature_version=(3, 10))
    assert text.count('\n') <= MAX_LINES, 'one idea each: split it'
    assert ast.get_docstring(ast.parse(text)), 'say what the module is for'


def test_no_file_names_a_developers_machine():
    folders = ('vlm_depth_ros', 'launch', 'config', 'test', 'docs', '.github')
    paths = [path for folder in folders for path in (ROOT / folder).rglob('*')]
    home = re.compile(r'(?<![\w.])/(home|root|Users|mnt|work)/\w')
    found = []
    for path in [*paths, *ROOT.glob('*.*'), ROOT / 'Makefile', ROOT / '.ci' / 'run']:
        if path.suffix in TEXT and path.is_file() and not CACHES.intersection(path.parts):
            text = path.read_text(encoding='utf-8', errors='replace')
            found += [f'{path}: {match.group()}' for match in home.finditer(text)]
    assert found == []


def test_ci_script_is_executable():
    assert (ROOT / '.ci' / 'run').stat().st_mode & stat.S_IXUSR


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_demo_hands_the_source_over_unharmed():
    done = subprocess.run(
        ['make', '--dry-run', 'demo', 'SOURCE=../my data/clip.mp4'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (
        "-m vlm_depth_ros.ros.demo --out 'demo_out' --source '../my data/clip.mp4'" in done.stdout
    )
    assert "vlm-depth report 'demo_out/depth.mcap' --out 'demo_out'" in done.stdout


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
def test_make_refuses_an_unknown_ros_by_name():
    done = subprocess.run(
        ['make', '--dry-run', 'test', 'ROS=melodic'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert 'ROS=melodic is not known: expected ros (Kilted) or ros-jazzy' in done.stderr


@installed_only
def test_what_is_tested_is_what_is_installed():
    assert Path(vlm_depth_ros.__file__).is_relative_to(sys.prefix)
    assert metadata.version('vlm_depth_ros') == vlm_depth_ros.__version__


@installed_only
@pytest.mark.parametrize('command', COMMANDS)
def test_pip_puts_the_command_on_the_path(command):
    assert os.access(Path(sysconfig.get_path('scripts')) / command, os.X_OK)


@installed_only
def test_pip_puts_the_share_folder_where_the_ament_index_looks():
    share = Path(sys.prefix) / 'share'
    assert (share / 'ament_index/resource_index/packages/vlm_depth_ros').is_file()
    for name in ('package.xml', 'launch/depth.launch.py', 'config/node.yaml', 'config/depth.rviz'):
        assert (share / 'vlm_depth_ros' / name).is_file(), name
