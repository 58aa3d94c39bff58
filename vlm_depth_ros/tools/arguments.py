"""Flags of every verb, apart from the verbs' modules, so that ``--help`` imports no torch."""

from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path

from vlm_depth_ros.core.config import PRECISIONS


def train(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth train``."""
    parser.add_argument('recipe', type=Path, help='YAML, such as config/train/pocket.yaml')
    parser.add_argument('out', type=Path, help='weights file to write (.safetensors)')
    parser.add_argument(
        '--data', type=Path, default=Path('../shared/data'), help='folder that holds the sets'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument(
        '--resume', action='store_true', help='go on from OUT.resume, written at every check'
    )
    parser.add_argument(
        '--check', action='store_true',
        help='first read all images and depth; list what is wrong by file name, then exit 1',
    )  # fmt: skip


def evaluate(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth evaluate``."""
    _model(parser)
    parser.add_argument(
        '--data', type=Path, required=True,
        help='folder with pairs.csv (image, depth, camera), or another set of docs/data.md',
    )  # fmt: skip
    parser.add_argument('--format', help='kind of set, where DATA could be several')
    parser.add_argument('--rows', help='half-open row ranges A:B[,C:D]; all by default')
    parser.add_argument(
        '--protocol', choices=('nyu', 'kitti', 'full'), default='full', help='crop and range'
    )
    parser.add_argument(
        '--flip', action='store_true', help='average with the prediction of the mirrored image'
    )
    parser.add_argument(
        '--blind-from', type=Path, help='fit the blind rows on this folder instead of on the '
        'rows of DATA that are not judged',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, help='write the result here')
    parser.add_argument(
        '--html', type=Path, metavar='DIR',
        help='write DIR/report.html, with charts and pictures, DIR/worst.png and, of a model '
        'with a confidence, DIR/confidence.png',
    )  # fmt: skip


def compare(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth compare``."""
    parser.add_argument('out', type=Path, help='folder for weights, cached features and table.md')
    parser.add_argument(
        '--recipes', type=Path, nargs='+', default=[Path('config/train/heads')],
        help='recipes that differ in the head alone, or folders (default config/train/heads)',
    )  # fmt: skip
    parser.add_argument('--seeds', help='such as 1,2,3: train each with each (default its own)')
    parser.add_argument(
        '--data', type=Path, default=Path('../shared/data'), help='folder that holds the sets'
    )
    parser.add_argument(
        '--judge', type=Path, required=True, metavar='SET', help='set that judges, as DATA of '
        'evaluate',
    )  # fmt: skip
    parser.add_argument('--rows', required=True, help='half-open row ranges A:B[,C:D] that judge')
    parser.add_argument(
        '--protocol', choices=('nyu', 'kitti', 'full'), default='full', help='crop and range'
    )
    parser.add_argument(
        '--device', default='auto', help='of training and judging: auto, cpu, cuda or cuda:N'
    )
    parser.add_argument('--json', type=Path, help='write everything that was measured here')


def obstacles(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth obstacles``."""
    _model(parser)
    parser.add_argument('--data', type=Path, required=True, help='folder with pairs.csv')
    parser.add_argument('--rows', help='half-open row ranges A:B[,C:D]; all by default')
    parser.add_argument(
        '--filters', nargs='+', metavar='NAME=NUMBER',
        help='as median_px=3 max_gradient=0.05 (default: those of docs/costmap.md)',
    )  # fmt: skip
    parser.add_argument('--cell-m', type=float, default=0.05, help='side of a cell (default 0.05)')
    parser.add_argument(
        '--range-m', type=float, default=3.0, help='obstacles count so far (default 3)'
    )
    parser.add_argument(
        '--heights-m', type=float, nargs=2, default=(-0.3, 0.3), metavar=('LOW', 'HIGH'),
        help='band of obstacles, above the camera (default -0.3 0.3)',
    )  # fmt: skip
    parser.add_argument(
        '--blind-from', type=Path, help='also judge the per-pixel mean of this folder'
    )
    parser.add_argument('--blind-rows', help='half-open row ranges of that folder')
    parser.add_argument('--json', type=Path, help='write the result here')
    parser.add_argument('--picture', type=Path, metavar='PNG', help='draw some grids here')
    parser.add_argument(
        '--photographs', action=BooleanOptionalAction, default=True,
        help='of the picture: image and depth beside the grids (default)',
    )  # fmt: skip


def synthetic(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth synthetic``."""
    parser.add_argument('out', type=Path, help='new or empty folder; becomes a pairs.csv folder')
    parser.add_argument('--count', type=int, default=100, help='number of pictures (default 100)')
    parser.add_argument(
        '--size', default='240x320', metavar='HxW', help='picture size, height first'
    )
    parser.add_argument('--seed', type=int, default=0, help='same seed, same pictures (default 0)')
    parser.add_argument(
        '--clip', action='store_true', help='one camera on a path instead of single views'
    )
    parser.add_argument(
        '--rate-hz', type=float, default=10.0, help='stamps of a clip (default 10)'
    )
    parser.add_argument('--style', default='room', help='kind of room of a clip (default room)')


def report(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth report``."""
    parser.add_argument('bag', type=Path, help='recording of a running node (.mcap)')
    parser.add_argument('--out', type=Path, required=True, help='folder for pictures and table')
    parser.add_argument(
        '--json', type=Path, help='summary (default OUT/summary.json)'
    )
    parser.add_argument(
        '--check', action='store_true', help='exit 1 unless 90 %% of the images were answered'
    )


def models(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth models``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument('tower', nargs='?', help='one architecture, such as ViT-B-16-SigLIP')
    which.add_argument('--all', action='store_true', help='names of every architecture')
    parser.add_argument('--json', type=Path, help='write the same here')


def doctor(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth doctor``."""
    parser.add_argument('weights', help='shipped name or file')
    _tower_weights(parser)
    parser.add_argument('--json', type=Path, help='write the findings here')


def predict(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth predict``."""
    parser.add_argument('source', type=Path, help='pairs.csv folder, images, video or bag')
    parser.add_argument('out', type=Path, help='folder for depth/ (16 bit, mm) and what is asked')
    _model(parser)
    parser.add_argument(
        '--npy', action='store_true', help='also npy/: float32 metres, NaN = none'
    )
    parser.add_argument('--ply', action='store_true', help='also cloud/: a coloured cloud each')
    parser.add_argument(
        '--video', action=BooleanOptionalAction,
        help='coloured depth as one color.mp4 instead of color/ (default: of a video)',
    )  # fmt: skip
    camera = parser.add_mutually_exclusive_group()
    camera.add_argument(
        '--camera', metavar='FX,FY,CX,CY', help='pinhole of the images in pixels, for clouds and '
        'focal correction (default: their own, of pairs.csv or a bag)',
    )  # fmt: skip
    camera.add_argument('--fov-deg', type=float, help='their horizontal field of view instead')
    parser.add_argument('--topic', help='image topic of a bag (default: the first)')
    parser.add_argument(
        '--range-m', type=float, nargs=2, metavar=('NEAR', 'FAR'),
        help='depths of the first and the last colour (default: the range of the weights)',
    )  # fmt: skip


def export(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth export``."""
    parser.add_argument('weights', help='shipped name or file')
    parser.add_argument('out', type=Path, help='file to write: .onnx or .pt2 (torch.export)')
    _tower_weights(parser)
    parser.add_argument(
        '--images', type=Path, metavar='DIR',
        help='compare with eager on the first images of this folder (default: rendered pictures)',
    )  # fmt: skip
    parser.add_argument(
        '--int8', action='store_true',
        help='.onnx in 8 bits, ranges and comparison from the photographs of --images (a folder, '
        'pairs.csv folder, video or bag); kept only if the depth stays',
    )  # fmt: skip
    parser.add_argument('--json', type=Path, help='write the differences here')


def benchmark(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth benchmark``."""
    parser.add_argument('--weights', default='pocket', help='shipped name or file, .onnx too')
    _tower_weights(parser)
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument(
        '--engines', metavar='A,B', help='as eager,openvino (default: eager, and what is '
        'installed; compiled only where named)',
    )  # fmt: skip
    parser.add_argument(
        '--runs', type=int, default=300,
        help='of each call, as far as a minute a table reaches (default 300)',
    )  # fmt: skip
    parser.add_argument(
        '--source', type=Path, help='camera images: pairs.csv folder, images, video or bag '
        '(default: 480x640 pictures, rendered)',
    )  # fmt: skip
    parser.add_argument(
        '--frames', type=int, default=300, help='of each camera (default 300; 0: no node)'
    )
    parser.add_argument(
        '--param', action='append', default=[], metavar='NAME:=VALUE',
        help='of the node, such as engine:=openvino; may be repeated',
    )  # fmt: skip
    parser.add_argument(
        '--cameras', default='1', metavar='N,M', help='as 1,2,4,8: estimator and node with each'
    )
    parser.add_argument(
        '--input-sizes', metavar='PX,PX', help='sides of square inputs, as 224,288,384,512: the '
        'network alone, random weights for a transformer',
    )  # fmt: skip
    parser.add_argument(
        '--peers', nargs='*', metavar='NAME', help='beside networks of others with random '
        'weights; without names all of docs/benchmark.md',
    )  # fmt: skip
    parser.add_argument(
        '--peer-runs', type=int, default=10, help='of each call beside a peer (default 10)'
    )
    parser.add_argument('--json', type=Path, help='write everything that was measured here')
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='write table.md, charts and logs of the node'
    )


def import_weights(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth import-weights``."""
    parser.add_argument('method', choices=('space-clip', 'dinov2'), help='whose code wrote it')
    parser.add_argument('checkpoint', type=Path, help=".pt or .pth as the authors' code saves it")
    parser.add_argument('out', type=Path, help='weights file to write (.safetensors)')
    parser.add_argument(
        '--max-depth', type=float, metavar='M',
        help='far end of the range (default: what the checkpoint says, else 10; of dinov2: nyu '
        '10, kitti 80)',
    )  # fmt: skip
    parser.add_argument(
        '--camera', help='camera it was trained for: nyu, kitti or FX,FY,W,H in pixels; dinov2 '
        'has that of its data set',
    )  # fmt: skip
    parser.add_argument(
        '--dataset', choices=('nyu', 'kitti'),
        help='of dinov2: what it was trained on, where the name of the file does not say it',
    )  # fmt: skip
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'),
        help='of dinov2: network input, multiples of 14 (default: nyu 490 644, kitti 364 1218)',
    )  # fmt: skip
    parser.add_argument(
        '--taps', choices=('early', 'middle', 'late'),
        help='structural taps, where the checkpoint does not say (default early)',
    )  # fmt: skip
    parser.add_argument(
        '--tower', help='hub name of the tower, such as google/siglip-base-patch16-224, where '
        'the checkpoint does not hold it; of dinov2 dinov2-vit-s14, b14, l14 or g14',
    )  # fmt: skip
    parser.add_argument(
        '--tower-weights', type=Path, help='file with that tower (open_clip, Hugging Face, timm '
        "or DINOv2's names)",
    )  # fmt: skip
    parser.add_argument(
        '--embed-tower', action='store_true', help='put the tower into the file: needs no other'
    )


def prompt_weights(parser: ArgumentParser) -> None:
    """Flags of ``vlm-depth prompt-weights``."""
    parser.add_argument('head', choices=('depthclip', 'depthblip2'))
    parser.add_argument('out', type=Path, help='weights file to write (.safetensors)')
    parser.add_argument(
        '--variant', help='of depthclip: faithful (default) or projected; of depthblip2: channel '
        'order v1 (default) or v2',
    )  # fmt: skip
    parser.add_argument(
        '--tower', help='architecture (default RN50-quickgelu, blip2-itm-vit-g)'
    )
    parser.add_argument(
        '--tower-weights', default='', metavar='FILE',
        help='file with image and text side (default: the published one, fetched if need be)',
    )  # fmt: skip
    parser.add_argument(
        '--vocabulary', default='', metavar='FILE',
        help="of depthblip2: BERT's vocab.txt (default: fetched if need be)",
    )  # fmt: skip
    parser.add_argument(
        '--size', metavar='HxW', help='network input (default 416x544, of depthblip2 224x224)'
    )
    parser.add_argument(
        '--embed-tower', action='store_true', help='put the tower into the file: needs no other'
    )
    parser.add_argument(
        '--fit', type=Path, metavar='DATA', help='of depthblip2: fit the bins to this set'
    )
    parser.add_argument('--rows', help='half-open row ranges A:B[,C:D] of DATA (default 0:16)')
    parser.add_argument('--device', default='auto', help='of --fit: auto, cpu, cuda or cuda:N')


def _model(parser: ArgumentParser) -> None:
    parser.add_argument('--weights', default='pocket', help='shipped name or file')
    _tower_weights(parser)
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--precision', default='auto', choices=PRECISIONS)


def _tower_weights(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--tower-weights', default='', metavar='FILE',
        help='file with its tower, where the weights file does not hold it',
    )  # fmt: skip


VERBS = {
    'predict': (predict, 'depth of images, folders, videos or bags, as files'),
    'evaluate': (evaluate, 'errors against measured depth, beside predictors that never look'),
    'report': (report, 'table and pictures of a recording made by the node'),
    'train': (train, 'train a head (or our own small tower and a head) by a YAML recipe'),
    'compare': (compare, 'train several heads alike, judge them, measure their costs: a table'),
    'obstacles': (obstacles, 'false and missed obstacles on a costmap grid, filters off and on'),
    'synthetic': (synthetic, 'render rooms with exact depth, as a training set or a clip'),
    'export': (export, 'weights as one ONNX or torch.export file, compared after writing'),
    'benchmark': (benchmark, 'speed of network, estimator and node, beside floors and peers'),
    'import-weights': (import_weights, 'checkpoints of other code, as weights files'),
    'prompt-weights': (prompt_weights, 'DepthCLIP and DepthBLIP-2: phrases and tower, as a file'),
    'models': (models, 'weights, heads and towers: sizes, licences, what to copy where'),
    'doctor': (doctor, 'examine a weights file: tower, tensors, text, camera, an answer'),
}
"""Verb: (flags, summary); ``vlm_depth_ros.tools.<verb>.run(args)`` does it."""
