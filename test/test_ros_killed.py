"""What a node survives: a kill, a network that answers nonsense, a device without memory."""

from pathlib import Path
import signal
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
import rclpy  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from ros_graph import (  # noqa: E402
    DepthWatch,
    Graph,
    image_message,
    info_message,
    Spinner,
    stamp_ns,
    wait_for,
)
from ros_process import Process, StandIn, START_S  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.files.images import save_png  # noqa: E402

PLAYER = [sys.executable, '-m', 'vlm_depth_ros.ros.camera_player', '--ros-args']
ANSWERS_WITHIN_S = 10.0
"""Of a node that has subscribed: processes announce themselves to each other every 3 s."""
OUT_OF_MEMORY = 'CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity'


def test_a_killed_node_that_starts_again_answers_a_camera_that_never_stopped(tmp_path):
    for i in range(4):
        picture = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        save_png(tmp_path / 'clip' / f'{i}.png', picture)
    reader = Spinner(lambda context: rclpy.create_node('reader', context=context))
    stamps_ns, left, watch = [], set(), DepthWatch()

    def take(message):
        watch.look(message)
        stamps_ns.append(stamp_ns(message))

    reader.node.create_subscription(Image, 'depth/image_rect', take, QoSProfile(depth=5))
    source = ['-p', f'source:={tmp_path / "clip"}', '-p', 'loop:=true', '-p', 'rate_hz:=10.0']
    with Process([*PLAYER, *source], tmp_path / 'player.log') as player:
        try:
            for life in range(2):
                with StandIn(['0', '0'], tmp_path / f'node{life}.log') as node:
                    wait_for(lambda: 'Subscribed' in node.output, 'the node to be active', START_S)
                    wait_for(lambda: stamps_ns, f'depth in life {life}', ANSWERS_WITHIN_S)
                    if life == 0:
                        left |= {segment for segment in node.segments if '_el' not in segment}
                        assert node.signalled(signal.SIGKILL) == -signal.SIGKILL
                        time.sleep(0.5)  # What was on its way.
                        stamps_ns.clear()
                assert 'Traceback' not in node.output, node.output
            assert player.is_running
            # Fresh frames, not what somebody had kept.
            assert abs(time.time_ns() - stamps_ns[-1]) < ANSWERS_WITHIN_S * 1e9
            watch.check()
        finally:
            reader.close()
    # Not sooner: while others still map them, nobody hears the next node.
    for segment in left:
        Path(segment).unlink(missing_ok=True)
        Path(f'{segment}_el').unlink(missing_ok=True)


@pytest.mark.parametrize('nonsense', [float('nan'), float('inf'), -1.0])
def test_a_network_that_answers_nonsense_gives_nan_no_cloud_and_a_warning(nonsense):
    with Graph(depth_m=nonsense) as graph:
        depth, clouds = graph.listen('depth/image_rect'), graph.listen('points')
        reports = graph.listen('/diagnostics', DiagnosticArray)
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        wait_for(lambda: depth, 'depth')
        assert np.isnan(np.frombuffer(depth[-1].data, '<f4')).all()
        assert not clouds  # An empty one would be taken for free space.
        wait_for(
            lambda: graph.publish('image', image_message())
            or any(r.status[0].level == DiagnosticStatus.WARN for r in reports)
            and 'no depth' in reports[-1].status[0].message,
            'a warning',
        )
        graph.model.depth_m = 2.0
        depth.clear()
        wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
        wait_for(
            lambda: graph.publish('image', image_message())
            or (np.frombuffer(depth[-1].data, '<f4') == 2).all(),
            'true depth',
        )
        wait_for(lambda: clouds and clouds[-1].width, 'points')
        wait_for(
            lambda: graph.publish('image', image_message())
            or reports[-1].status[0].level == DiagnosticStatus.OK,
            'the end of the warning',
        )


@pytest.mark.parametrize('cameras', [[''], ['front', 'rear']])
def test_a_device_out_of_memory_drops_frames_and_the_next_good_one_is_answered(cameras, capfd):
    with Graph(cameras=cameras) as graph:
        prefixes = [f'{name}/' if name else '' for name in cameras]
        depth = [graph.listen(f'{prefix}depth/image_rect') for prefix in prefixes]
        answer, failing = graph.model.forward, True

        def forward(image):
            if failing:
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
            return answer(image)

        graph.model.forward = forward

        def publish_all():
            for prefix in prefixes:
                graph.publish(f'{prefix}image', image_message())

        def are_failing():
            publish_all()
            return all(s.failed >= 3 for s in graph.node.statistics)

        wait_for(are_failing, 'frames to be dropped')
        assert not any(depth) and graph.state == 'active'
        failing = False
        wait_for(lambda: publish_all() or all(depth), 'depth once there is memory')
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    dropped = [line for line in lines if 'Frame dropped' in line]
    assert len(dropped) == len(cameras), dropped
    assert all('device cpu is out of memory' in line for line in dropped), dropped
    assert all('use fewer cameras' in line for line in dropped), 'all in one line'
