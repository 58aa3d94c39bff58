"""``vlm-depth report`` on recordings made at a desk, whose every figure is known."""

import json

from desk_sets import CAMERA
import numpy as np
import pytest
from rosbags.typesys import get_typestore, Stores
import torch
from vlm_depth_ros.core.packing import pack_cloud, pack_depth, PackedImage
from vlm_depth_ros.files.bag_messages import packed_message
from vlm_depth_ros.files.bags import BagWriter
from vlm_depth_ros.files.clouds import read_ply
from vlm_depth_ros.files.images import load_rgb
from vlm_depth_ros.tools.cli import main
from vlm_depth_ros.tools.pictures import cloud_view, colour_bar, colour_rgb, LABEL_PX
from vlm_depth_ros.tools.report import SHOWN_HW

TYPES = get_typestore(Stores.ROS2_KILTED)
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000
FACTS = {
    'source': 'clip', 'is_synthetic': True, 'rmw': 'rmw_fastrtps_cpp', 'weights': 'pocket',
    'device': 'cpu', 'played_hz': 10.0,
}  # fmt: skip
CELL_HW = (SHOWN_HW[0] + 6, SHOWN_HW[1] + 6)


class Desk:
    """Writes a recording message by message, each with its stamp and its arrival."""

    def __init__(self, path):
        self.bag = BagWriter(path)

    def put(self, topic, packed, stamp_ns, delay_ms=0.0):
        msgtype, message = packed_message(packed, stamp_ns, 'camera', TYPES.types)
        cdr = TYPES.serialize_cdr(message, msgtype)
        self.bag.add(topic, msgtype, cdr, stamp_ns + round(delay_ms * 1e6))

    def text(self, topic, text):
        kind = 'std_msgs/msg/String'
        self.bag.add(topic, kind, TYPES.serialize_cdr(TYPES.types[kind](text), kind), START_NS)


def image(value=100):
    rgb = np.full((48, 64, 3), value, np.uint8)
    return PackedImage(48, 64, 'rgb8', 192, rgb.reshape(-1))


def depth_and_cloud(metres, colour=(200, 0, 0)):
    depth = torch.full((48, 64), metres)
    depth[:8] = torch.nan
    rgb = torch.tensor(colour, dtype=torch.uint8).expand(48, 64, 3)
    return pack_depth(depth), pack_cloud(depth, CAMERA, rgb.contiguous(), 2, False)


def record(path, count=10, *, lost=(), foreign=0, truth_m=None, facts=FACTS, metres=2.0):
    """A run of `count` images at 10 Hz; cloud i arrives 50 + i ms after its image."""
    desk = Desk(path)
    depth, cloud = depth_and_cloud(metres)
    with desk.bag:
        if facts is not None:
            desk.text('/demo/run', json.dumps(facts))
        for i in range(count):
            stamp = START_NS + i * PERIOD_NS
            desk.put('/image', image(), stamp, 1)
            if truth_m is not None:
                desk.put('/ground_truth/depth', depth_and_cloud(truth_m)[0], stamp, 2)
            if i not in lost:
                desk.put('/depth/image_rect', depth, stamp, 40)
                desk.put('/points', cloud, stamp, 50 + i)
        for i in range(foreign):
            desk.put('/points', cloud, START_NS + i * PERIOD_NS + 7, 60)
    return path


def report(bag, out, *flags):
    code = main(['report', str(bag), '--out', str(out), *flags])
    summary = out / 'summary.json'
    return code, json.loads(summary.read_text()) if summary.is_file() else None


def test_summary_figures_are_exact(tmp_path):
    code, found = report(record(tmp_path / 'run.mcap', truth_m=2.5), tmp_path / 'out', '--check')
    assert code == 0
    points = (24 - 4) * 32  # stride 2, the first 8 of 48 rows unknown
    assert found == {
        'frames_in': 10, 'frames_out': 10, 'points_out': 10 * points,
        'rate_hz': round(9 / (9 * 0.101), 2),  # from 50 ms after the first to 59 after the last
        'latency_ms': {'p50': 54.5, 'p95': pytest.approx(58.55, abs=0.06), 'p99': 58.9},
        'abs_rel': 0.2,
        **FACTS,
    }  # fmt: skip


def test_without_truth_abs_rel_is_null(tmp_path, capsys):
    code, found = report(record(tmp_path / 'run.mcap', 3), tmp_path / 'out')
    assert code == 0 and found['abs_rel'] is None
    said = capsys.readouterr().out
    assert 'no truth' in said and 'clip (synthetic)' in said and 'summary.json' in said


@pytest.mark.parametrize('truth_m', [None, 2.5])
def test_sheet_shows_one_row_per_frame_and_truth_where_known(tmp_path, truth_m):
    report(record(tmp_path / 'run.mcap', 10, truth_m=truth_m), tmp_path / 'out')
    sheet = load_rgb(tmp_path / 'out' / 'frames.png')
    columns = 3 if truth_m is None else 4
    assert sheet.shape == (LABEL_PX + 4 * CELL_HW[0] + 44, columns * CELL_HW[1], 3)
    middle = [c * CELL_HW[1] + CELL_HW[1] // 2 for c in range(columns)]
    y = LABEL_PX + CELL_HW[0] // 2
    assert sheet[y, middle[0]].tolist() == [100, 100, 100]
    # 2 m alone span 2 to 2.5 m; with a truth of 2.5 m each end has its colour.
    near, far = colour_rgb(np.array([[2.0, 2.5]], np.float32), (2.0, 2.5))[0].tolist()
    assert sheet[y, middle[1]].tolist() == near
    if truth_m:
        assert sheet[y, middle[2]].tolist() == far
    assert (sheet[:, -CELL_HW[1] :] == [200, 0, 0]).all(-1).sum() > 4 * 1000  # the clouds
    unknown = LABEL_PX + 3 + 10
    assert sheet[unknown, middle[1]].tolist() == [0, 0, 0]


def test_cloud_of_a_frame_is_written(tmp_path):
    report(record(tmp_path / 'run.mcap', 3), tmp_path / 'out')
    points, rgb = read_ply(tmp_path / 'out' / 'cloud.ply')
    assert len(points) == 640 and (points[:, 2] == 2.0).all()
    assert (rgb == [200, 0, 0]).all()


def test_lost_clouds_fail_the_check_only_when_asked(tmp_path, capsys):
    bag = record(tmp_path / 'run.mcap', 10, lost=(2, 5))
    code, found = report(bag, tmp_path / 'out')
    assert code == 0 and found['frames_out'] == 8
    assert report(bag, tmp_path / 'out', '--check')[0] == 1
    assert '8 clouds for 10 images: expected at least 90%' in capsys.readouterr().out


def test_nine_of_ten_clouds_are_enough(tmp_path):
    bag = record(tmp_path / 'run.mcap', 10, lost=(4,))
    assert report(bag, tmp_path / 'out', '--check')[0] == 0


def test_clouds_with_a_foreign_stamp_fail_the_check(tmp_path, capsys):
    bag = record(tmp_path / 'run.mcap', 10, foreign=1)
    code, found = report(bag, tmp_path / 'out', '--check')
    assert code == 1 and '1 clouds carry a stamp that no image had' in capsys.readouterr().out
    assert found['latency_ms']['p50'] == 54.5  # they have no image to be late for


def test_run_without_any_cloud_is_reported_and_fails(tmp_path):
    bag = record(tmp_path / 'run.mcap', 5, lost=range(5))
    code, found = report(bag, tmp_path / 'out', '--check')
    assert code == 1 and found['frames_out'] == 0 and found['rate_hz'] == 0.0
    assert found['latency_ms'] == {'p50': None, 'p95': None, 'p99': None}
    assert not (tmp_path / 'out' / 'frames.png').exists()


def test_truth_that_meets_no_depth_is_not_judged(tmp_path):
    """The known and the answered pixels may be disjoint; null is not NaN, which is no JSON."""
    desk = Desk(tmp_path / 'run.mcap')
    truth = torch.full((48, 64), torch.nan)
    truth[:8] = 2.0
    with desk.bag:
        desk.put('/image', image(), START_NS)
        desk.put('/depth/image_rect', depth_and_cloud(2.0)[0], START_NS, 40)
        desk.put('/ground_truth/depth', pack_depth(truth), START_NS, 41)
    assert report(tmp_path / 'run.mcap', tmp_path / 'out')[1]['abs_rel'] is None


def test_recording_without_facts_or_colour_is_still_drawn(tmp_path):
    desk = Desk(tmp_path / 'run.mcap')
    depth = torch.full((48, 64), 2.0)
    grey = PackedImage(48, 64, 'mono8', 64, np.full(48 * 64, 90, np.uint8))
    with desk.bag:
        desk.put('/image', grey, START_NS)
        desk.put('/depth/image_rect', pack_depth(depth), START_NS, 40)
        desk.put('/points', pack_cloud(depth, CAMERA, None, 1, True), START_NS, 50)
    code, found = report(tmp_path / 'run.mcap', tmp_path / 'out')
    assert code == 0 and found['weights'] is None
    assert (tmp_path / 'out' / 'frames.png').is_file()


def mistake(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('vlm-depth report: ')
    return lines[0]


def test_bag_of_another_kind_is_refused(tmp_path, capsys):
    desk = Desk(tmp_path / 'foreign.mcap')
    with desk.bag:
        desk.text('/chatter', 'hello')
        desk.text('/image', 'a topic of the right name and the wrong type')
    assert report(desk.bag.path, tmp_path / 'out')[0] == 1
    assert 'holds no /image' in mistake(capsys)
    assert not (tmp_path / 'out').exists()


def test_bag_with_other_topics_beside_ours_is_read(tmp_path):
    desk = Desk(tmp_path / 'run.mcap')
    with desk.bag:
        desk.text('/points', 'of another type')
        desk.put('/image', image(), START_NS)
    assert report(desk.bag.path, tmp_path / 'out')[1]['frames_out'] == 0


@pytest.mark.parametrize('text', ['{', '[1]', 'null'])
def test_facts_of_another_form_are_refused(tmp_path, text, capsys):
    desk = Desk(tmp_path / 'run.mcap')
    with desk.bag:
        desk.text('/demo/run', text)
        desk.put('/image', image(), START_NS)
    assert report(desk.bag.path, tmp_path / 'out')[0] == 1
    assert 'expected the facts of a demo run' in mistake(capsys)


@pytest.mark.parametrize('content', [None, b'', b'no bag at all'])
def test_missing_or_damaged_bag_is_refused(tmp_path, content, capsys):
    path = tmp_path / 'run.mcap'
    if content is not None:
        path.write_bytes(content)
    assert report(path, tmp_path / 'out')[0] == 1
    assert 'run.mcap' in mistake(capsys)


def test_bag_cut_in_half_is_refused(tmp_path, capsys):
    path = record(tmp_path / 'run.mcap', 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert report(path, tmp_path / 'out')[0] == 1
    assert 'run.mcap' in mistake(capsys)


@pytest.mark.parametrize('width', [8, 40, 64, 320, 1280])
def test_bar_fits_any_width_and_shows_both_ends(width):
    bar = colour_bar((0.5, 4.0), (44, width))
    assert bar.shape == (44, width, 3)
    near, far = colour_rgb(np.array([[0.5, 4.0]], np.float32), (0.5, 4.0))[0].tolist()
    row = bar[10].tolist()
    assert near in row and far in row and row.index(near) < row.index(far)


def test_cloud_view_hides_what_is_behind_and_turns_to_the_right():
    """A viewer who moved to the right sees a near point move left against a far one."""
    near, far = [0.0, 0.0, 1.0], [0.0, 0.0, 4.0]
    points = np.array([near, [0, 0, 2], [0, 0, 2], far], np.float32)
    rgb = np.array([[255, 0, 0], [9, 9, 9], [9, 9, 9], [0, 0, 255]], np.uint8)
    ahead = cloud_view(points, rgb, (100, 100), (0.0, 0.0))
    assert ahead[50, 50].tolist() == [255, 0, 0]
    turned = cloud_view(points, rgb, (100, 100), (25.0, 0.0))
    columns = {c: np.nonzero((turned == c).all(-1))[1] for c in ((255, 0, 0), (0, 0, 255))}
    assert columns[255, 0, 0].mean() < columns[0, 0, 255].mean()
    raised = cloud_view(points, rgb, (100, 100), (0.0, 20.0))
    rows = {c: np.nonzero((raised == c).all(-1))[0] for c in ((255, 0, 0), (0, 0, 255))}
    assert rows[255, 0, 0].mean() > rows[0, 0, 255].mean()  # from above, the near one lies lower


def test_near_point_covers_a_far_one_that_it_touches():
    points = np.array([[0, 0, 2.0], [0.02, 0, 4.0]], np.float32)
    rgb = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    for order in ([0, 1], [1, 0]):
        view = cloud_view(points[order], rgb[order], (100, 100), (0.0, 0.0))
        assert (view == [255, 0, 0]).all(-1).sum() == 9


def test_empty_cloud_is_an_empty_view():
    view = cloud_view(np.full((3, 3), np.nan, np.float32), None, (20, 30), (0, 0))
    assert view.shape == (20, 30, 3) and len(np.unique(view.reshape(-1, 3), axis=0)) == 1
