"""Large messages over real processes: everybody else runs with stock settings."""

import json
import os
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, info_message, wait_for  # noqa: E402
from vlm_depth_ros.ros.profile import VARIABLES  # noqa: E402

pytestmark = pytest.mark.alone

PEER = [sys.executable, str(Path(__file__).with_name('ros_peer.py'))]
FRAMES, RATE_HZ = 60, 8
HEIGHT, WIDTH = 480, 640


def start(*arguments: object) -> subprocess.Popen:
    """Start a peer without our profile in its environment."""
    stock = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    command = [*PEER, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=stock)


def result(process: subprocess.Popen) -> set[int]:
    """Stamps that a peer published or received."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return set(json.loads(out.splitlines()[-1])['stamps_ns'])


def test_stock_peers_get_and_deliver_every_large_message():
    """Best-effort readers get 95 % of what reliable ones get; a reliable camera loses nothing.

    Clouds of stride 1 have 4.9 MB, depth images 1.2 MB, camera images 0.9 MB.
    """
    with Graph(cloud_stride=1) as graph:
        seconds = FRAMES / RATE_HZ + 40
        readers = {
            (topic, reliability): start('reader', topic, kind, reliability, seconds)
            for topic, kind in (('points', 'PointCloud2'), ('depth/image_rect', 'Image'))
            for reliability in ('reliable', 'best_effort')
        }
        for reader in readers.values():
            assert reader.stdout.readline() == 'ready\n'
        for topic, publisher in graph.node._outputs[0]._publishers.items():
            if topic.name in ('points', 'depth/image_rect'):
                wait_for(lambda p=publisher: p.get_subscription_count() == 2, 'readers', 20)
        graph.publish('camera_info', info_message(HEIGHT, WIDTH))
        camera = start('camera', 'image', 'reliable', FRAMES, RATE_HZ, HEIGHT, WIDTH)
        sent = result(camera)
        statistics = graph.node.statistics[0]
        assert len(sent) == FRAMES
        assert graph.node._inputs[0].reliability == 'reliable'
        assert statistics.received == FRAMES, 'a reliable camera lost images to us'
        got = {key: result(reader) & sent for key, reader in readers.items()}
    print({key: len(stamps) for key, stamps in got.items()}, statistics)
    for topic in ('points', 'depth/image_rect'):
        reliable, best_effort = got[topic, 'reliable'], got[topic, 'best_effort']
        # A busy machine may drop frames for newer ones; the rest has to arrive.
        assert len(reliable) >= 0.5 * FRAMES
        assert len(best_effort) >= 0.95 * len(reliable)
    assert np.isfinite(statistics.last_latency_ms)
    time.sleep(0.1)
