"""Installs the package: with pip (no ROS needed) and as an ament_python package with colcon."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'vlm_depth_ros'
SHARE = f'share/{NAME}'


def share_files():
    """Answer data_files: ament marker, package.xml, launch/ and config/ with sub-folders."""
    files = {
        'share/ament_index/resource_index/packages': [f'resource/{NAME}'],
        SHARE: ['package.xml'],
    }
    for top in ('launch', 'config'):
        for path in sorted(Path(top).rglob('*')):
            if path.is_file() and path.suffix in ('.py', '.rviz', '.yaml', '.xml', '.md'):
                files.setdefault(f'{SHARE}/{path.parent.as_posix()}', []).append(path.as_posix())
    return sorted(files.items())


setup(
    name=NAME,
    version='0.1.0',
    description='Metric depth images and point clouds from a frozen vision-language image tower.',
    author='vlm_depth_ros maintainers',
    maintainer='vlm_depth_ros maintainers',
    maintainer_email='maintainers@example.com',
    license='Apache-2.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['assets/*', 'assets/**/*']},
    data_files=share_files(),
    zip_safe=False,
    python_requires='>=3.10',
    # open_clip_torch brings a torch and a torchvision that fit each other, and timm.
    install_requires=[
        'numpy>=1.26',
        'opencv-python-headless>=4.5.4',
        'open_clip_torch>=3.0,<4',
        'timm>=1.0.17',
        'torch>=2.1',
        'safetensors>=0.4',
        'huggingface_hub>=0.20',
        'rosbags>=0.10.4,<0.12',
        'rich>=12',
        'PyYAML>=5.4',
    ],
    extras_require={
        # ROS 2 without a ROS installation. Kilted; the packages pin one another.
        'ros': [
            'ros-rclpy[fastrtps]>=9.1.2,<10',
            'ros-common-interfaces>=5.5.1,<6',
            'ros-lifecycle-msgs>=2.3.0,<3',
        ],
        'ros-jazzy': [
            'ros-rclpy[fastrtps]==7.1.6',
            'ros-common-interfaces==5.3.6',
            'ros-lifecycle-msgs==2.0.3',
        ],
        # transformers: the towers are compared with its own CLIP and SigLIP. h5py and SciPy write
        # NYU Depth V2's files, to be read back; ONNX Runtime answers as a feature teacher, and
        # beside OpenVINO as an engine;
        # training curves are read back.
        'test': [
            'pytest>=7',
            'pytest-xdist>=3.5',
            'transformers>=4.45',
            'h5py>=3.8',
            'scipy>=1.11',
            'onnxruntime>=1.17',
            'onnx>=1.16',
            'onnxscript>=0.1',
            'openvino>=2024.4',
            'tensorboard>=2.14',
        ],
        'lint': ['ruff>=0.9,<1'],
        # Other engines for the network, and vlm-depth export.
        'engines': [
            'torch>=2.5',
            'onnx>=1.16',
            'onnxscript>=0.1',
            'onnxruntime>=1.17',
            'openvino>=2024.4',
        ],
        # The tower of the head depthblip2.
        'blip2': ['transformers>=4.45'],
        # The feature teacher of the tower's first training stage is an ONNX file.
        # TensorBoard shows the curves.
        'train': ['onnxruntime>=1.17', 'tensorboard>=2.14'],
        # NYU Depth V2 as published: an HDF5 file, and a MATLAB 5 file with the official split.
        'datasets': ['h5py>=3.8', 'scipy>=1.11'],
    },
    entry_points={
        'console_scripts': [
            'depth_node = vlm_depth_ros.ros.node:main',
            'camera_player = vlm_depth_ros.ros.camera_player:main',
            'vlm-depth = vlm_depth_ros.tools.cli:main',
        ],
    },
)
