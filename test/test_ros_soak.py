"""The soak reads what it says, and its verdict is about a node that answers."""

import os
import signal

from desk_sets import write_set
import pytest
import yaml

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from ros_graph import Graph, image_message, info_message, Spinner, wait_for  # noqa: E402
from vlm_depth_ros.ros import soak  # noqa: E402
from vlm_depth_ros.ros.outputs import TOPICS  # noqa: E402
from vlm_depth_ros.ros.soak import MOUNTED, reader, resident_mb  # noqa: E402

NOT_OF_THE_STAND_IN = {'depth/confidence', 'embedding'}
"""Its head has no confidence, and its tower no projection."""


def test_the_soak_subscribes_to_every_output_and_each_that_the_model_has_comes():
    with Graph(camera_in_base=yaml.safe_load(MOUNTED.partition(':=')[2])) as graph:
        recorder = Spinner(lambda context: reader(context=context))
        try:
            (output,) = graph.node._outputs
            publishers = output._publishers.values()
            wait_for(
                lambda: all(p.get_subscription_count() for p in publishers), 'a reader of each'
            )
            graph.publish('camera_info', info_message())
            counts = recorder.node.counts
            wait_for(
                lambda: graph.publish('image', image_message())
                or set(counts) == {topic.name for topic in TOPICS} - NOT_OF_THE_STAND_IN,
                'every output',
            )
            assert recorder.node.kept_count == 0
        finally:
            recorder.close()


def test_a_node_that_dies_fails_the_soak(tmp_path, monkeypatch, capsys):
    """As one does that the kernel ends for its memory; a dead one grows no more."""

    def kill_and_read(pid):
        os.kill(pid, signal.SIGKILL)
        return resident_mb(pid)

    monkeypatch.setattr(soak, 'SETTLE_S', 1.0)
    monkeypatch.setattr(soak, 'PERIOD_S', 1.0)
    monkeypatch.setattr(soak, 'resident_mb', kill_and_read)
    source = write_set(tmp_path / 'set', [2.0])
    call = ['--source', str(source), '--out', str(tmp_path), '--minutes', '0.1']
    assert soak.main(call) == 1
    assert 'soak: depth_node ended with code -9' in capsys.readouterr().err


@pytest.mark.parametrize('minutes', ['0', '-1', 'nan'])
def test_no_time_is_no_soak(minutes, tmp_path, capsys):
    assert soak.main(['--source', 'any', '--out', str(tmp_path), '--minutes', minutes]) == 1
    error = capsys.readouterr().err
    assert f'--minutes {float(minutes):g}: expected more than 0' in error
    assert error.count('\n') == 1
