"""``vlm-depth report``: a recording of the running node becomes a table, pictures and a verdict.

The recording holds what another process received, with the time of arrival; an image's stamp is
the time of its publication, so latency is arrival of the cloud minus that stamp.
"""

import argparse
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.files import bags
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.bag_arrays import (
    cloud_xyzrgb,
    depth_array_m,
    image_array,
    stamp_ns,
)
from vlm_depth_ros.files.clouds import write_ply
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.tools.metrics import depth_metrics, PROTOCOLS
from vlm_depth_ros.tools.pictures import (
    cloud_view,
    colour_bar,
    colour_rgb,
    fit,
    round_range_m,
    sheet,
)

IMAGE, DEPTH, POINTS = '/image', '/depth/image_rect', '/points'
TRUTH, RUN = '/ground_truth/depth', '/demo/run'
TYPES = {
    IMAGE: 'sensor_msgs/msg/Image',
    DEPTH: 'sensor_msgs/msg/Image',
    POINTS: 'sensor_msgs/msg/PointCloud2',
    TRUTH: 'sensor_msgs/msg/Image',
    RUN: 'std_msgs/msg/String',
}
"""What is read of a recording; a topic of another type is left alone."""
SHOWN_FRAMES = 4
SHOWN_HW = (240, 320)
ANSWERED_SHARE = 0.9
"""At least this share of the images must come back as clouds."""


@dataclass
class Recording:
    """What a bag tells of a run; stamps and times in nanoseconds."""

    images: list[int] = field(default_factory=list)
    """Stamps of the images, in order."""
    depths: list[int] = field(default_factory=list)
    clouds: dict[int, int] = field(default_factory=dict)
    """Stamp of each cloud: its arrival."""
    abs_rel: list[float] = field(default_factory=list)
    run: dict = field(default_factory=dict)
    """What the recorder noted: source, rmw, weights, device."""

    def problems(self) -> list[str]:
        """What is wrong with the run, one sentence each."""
        found = []
        if not self.images:
            return ['no image was recorded.']
        answered = len(self.clouds) / len(self.images)
        if answered < ANSWERED_SHARE:
            found.append(
                f'{len(self.clouds)} clouds for {len(self.images)} images: expected at least '
                f'{ANSWERED_SHARE:.0%}.'
            )
        strangers = set(self.clouds) - set(self.images)
        if strangers:
            found.append(f'{len(strangers)} clouds carry a stamp that no image had.')
        return found

    def summary(self) -> dict:
        """The figures of ``summary.json``."""
        asked = set(self.images)
        latency_ms = [(end - start) / 1e6 for start, end in self.clouds.items() if start in asked]
        arrivals = sorted(self.clouds.values())
        span_s = (arrivals[-1] - arrivals[0]) / 1e9 if len(arrivals) > 1 else 0
        names = ('rmw', 'weights', 'device', 'source', 'is_synthetic', 'played_hz')
        return {
            'frames_in': len(self.images),
            'frames_out': len(self.clouds),
            'points_out': self.run.get('points_out', 0),
            'rate_hz': round((len(arrivals) - 1) / span_s, 2) if span_s else 0.0,
            'latency_ms': {
                f'p{q}': round(float(np.percentile(latency_ms, q)), 1) if latency_ms else None
                for q in (50, 95, 99)
            },
            'abs_rel': round(float(np.mean(self.abs_rel)), 4) if self.abs_rel else None,
        } | {name: self.run.get(name) for name in names}


@dataclass
class Shown:
    """One frame of the picture."""

    rgb: np.ndarray | None = None
    depth_m: np.ndarray | None = None
    truth_m: np.ndarray | None = None
    cloud: tuple | None = None


def read_recording(path: Path) -> tuple[Recording, list[Shown]]:
    """Read a recording once for its figures and once more for a few frames to show.

    Raises:
        InputError: If the bag is missing, damaged, or holds no images.
    """
    topics = _topics(path)
    if IMAGE not in topics:
        raise InputError(f'{path}: holds no {IMAGE}; expected a recording of the demo.')
    found, points_out = Recording(), 0
    waiting: dict[str, dict[int, Any]] = {DEPTH: {}, TRUTH: {}}
    for topic, arrival_ns, msg in bags.read_messages(path, topics):
        if topic == RUN:
            found.run |= _facts(path, msg.data)
            continue
        stamp = stamp_ns(msg)
        if topic == IMAGE:
            found.images.append(stamp)
        elif topic == POINTS:
            found.clouds[stamp] = arrival_ns
            points_out += msg.width * msg.height
        elif topic == DEPTH:
            found.depths.append(stamp)
        if topic in waiting and TRUTH in topics:
            waiting[topic][stamp] = msg
            if all(stamp in messages for messages in waiting.values()):
                depth, truth = (waiting[name].pop(stamp) for name in (DEPTH, TRUTH))
                found.abs_rel += _abs_rel(depth_array_m(depth), depth_array_m(truth))
    found.run['points_out'] = points_out
    return found, _frames_to_show(path, found, topics)


def _topics(path: Path) -> list[str]:
    with bags.BagReader(path) as bag:
        return [t.name for t in bag.topics if TYPES.get(t.name) == t.msgtype and t.count]


def _facts(path: Path, text: str) -> dict:
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise InputError(f'{path}: {RUN} holds {text[:40]!r}; expected the facts of a demo run.')
    return facts


def _abs_rel(depth_m: np.ndarray, truth_m: np.ndarray) -> list[float]:
    """Unscaled AbsRel where both are known, if anywhere: what was withheld is not judged."""
    if depth_m.shape != truth_m.shape:
        return []
    both = np.where(np.isfinite(depth_m), truth_m, np.nan)
    if not np.isfinite(both).any():
        return []
    return [depth_metrics(depth_m, both, PROTOCOLS['full'])['abs_rel']]


def _frames_to_show(path: Path, found: Recording, topics: list[str]) -> list[Shown]:
    answered = set(found.clouds) & set(found.depths)
    complete = [stamp for stamp in found.images if stamp in answered]
    if not complete:
        return []
    picks = np.linspace(0, len(complete) - 1, min(SHOWN_FRAMES, len(complete)))
    shown = {complete[round(i)]: Shown() for i in picks}
    for topic, _, msg in bags.read_messages(path, [t for t in topics if t != RUN]):
        frame = shown.get(stamp_ns(msg))
        if frame is None:
            continue
        if topic == IMAGE:
            frame.rgb = _rgb(msg)
        elif topic == POINTS:
            frame.cloud = cloud_xyzrgb(msg)
        elif topic == TRUTH:
            frame.truth_m = depth_array_m(msg)
        else:  # as the node publishes it, with what is beyond range as +Inf
            is_metres = msg.encoding == '32FC1'
            frame.depth_m = image_array(msg) if is_metres else depth_array_m(msg)
    return list(shown.values())


def _rgb(msg: Any) -> np.ndarray:
    pixels = image_array(msg)
    if pixels.dtype != np.uint8:
        raise InputError(f'{IMAGE}: encoding {msg.encoding!r} is no 8-bit picture.')
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def draw(frames: list[Shown], label: str = '') -> np.ndarray:
    """The sheet: image, depth, sensor depth where known, and the cloud seen from the side."""
    range_m = round_range_m([m for f in frames for m in (f.depth_m, f.truth_m) if m is not None])
    has_truth = any(f.truth_m is not None for f in frames)
    titles = [f'image{label}', 'depth (this node)', *(['depth (known)'] if has_truth else []),
              'cloud, seen from above right']  # fmt: skip
    rows = []
    for f in frames:
        row = [fit(f.rgb, SHOWN_HW), fit(colour_rgb(f.depth_m, range_m), SHOWN_HW, nearest=True)]
        if has_truth:
            truth = np.full(SHOWN_HW, np.nan, np.float32) if f.truth_m is None else f.truth_m
            row.append(fit(colour_rgb(truth, range_m), SHOWN_HW, nearest=True))
        row.append(cloud_view(*f.cloud, SHOWN_HW, (25.0, 20.0)))
        rows.append(row)
    return sheet(rows, titles, colour_bar(range_m, (44, 2 * SHOWN_HW[1])))


def run(args: argparse.Namespace) -> int:
    """Read, draw, print; 1 with ``--check`` if the run was not good enough."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    with console.status(f'reading {args.bag}'):
        recording, frames = read_recording(args.bag)
        summary, written = recording.summary(), []
        label = ' (synthetic)' if summary['is_synthetic'] else ''
        summary_file = args.json or args.out / 'summary.json'
        with atomic_file(summary_file) as path:
            path.write_text(json.dumps(summary, indent=2) + '\n')
        if frames:
            save_png(args.out / 'frames.png', draw(frames, label))
            write_ply(args.out / 'cloud.ply', *frames[len(frames) // 2].cloud)
            written = ['frames.png', 'cloud.ply']
    table = Table(title=escape(f'{summary["source"] or args.bag}{label}'))
    for column in ('frames in', 'out', 'rate Hz', 'p50 ms', 'p95 ms', 'p99 ms', 'AbsRel'):
        table.add_column(column, justify='right')
    latency = summary['latency_ms']
    table.add_row(
        str(summary['frames_in']), str(summary['frames_out']), f'{summary["rate_hz"]:.1f}',
        *('-' if latency[q] is None else f'{latency[q]:.0f}' for q in ('p50', 'p95', 'p99')),
        'no truth' if summary['abs_rel'] is None else f'{summary["abs_rel"]:.3f}',
    )  # fmt: skip
    console.print(table)
    console.print(f'weights {summary["weights"]} on {summary["device"]}, {summary["rmw"]}')
    for file in (summary_file, *(args.out / name for name in written)):
        console.print(f'  {file}', markup=False, soft_wrap=True)
    problems = recording.problems()
    for problem in problems:
        console.print(f'[red]not good:[/red] {problem}')
    return 1 if args.check and problems else 0
