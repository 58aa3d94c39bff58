"""Another model while the node runs: what is published, what is refused, what stays."""

import gc
from itertools import pairwise
import threading
import time
import weakref

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy and the message packages')
pytest.importorskip('torch', reason='the node needs a network')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from known_head import known_weights  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
import ros_graph  # noqa: E402
from ros_graph import Graph, image_message, info_message, wait_for  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
import torch  # noqa: E402
from vlm_depth_ros.ros.loading import load_estimator  # noqa: E402


class HeldBack:
    """`load_estimator` that waits for `go` before it loads the files named in `held`."""

    def __init__(self, held=()):
        self.held, self.go = held, threading.Event()

    def __call__(self, weights, runtime):
        """Load what is named, when it may."""
        if weights in self.held:
            assert self.go.wait(30)
        return load_estimator(weights, runtime)


class Camera:
    """Publishes images at a rate until it is left."""

    def __init__(self, graph, rate_hz=10.0):
        graph.publish('camera_info', info_message())
        graph.publish('image', image_message())
        self._graph, self._period_s = graph, 1 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(self._period_s):
            self._graph.publish('image', image_message())


@pytest.fixture(scope='module')
def near(tmp_path_factory):
    """2 m, sure by a quarter, on a tower that embeds."""
    return known_weights(tmp_path_factory.mktemp('near') / 'near.safetensors', confidence=0.25)


@pytest.fixture(scope='module')
def far(tmp_path_factory):
    """15 m: 30 m for a camera of twice the focal length; no confidence, no embedding."""
    return known_weights(
        tmp_path_factory.mktemp('far') / 'far.safetensors', 'pocket-tower',
        range_m=(5.0, 20.0), focal=2.0, depth_m=30.0,
    )  # fmt: skip


@pytest.fixture
def graph_on(monkeypatch):
    """Start a node on weights; real loading, of `held` ones only after ``graph.factory.go``."""
    def start(path, held=(), **parameters):
        factory = HeldBack([str(p) for p in held])
        monkeypatch.setattr(ros_graph, 'Factory', lambda _: factory)
        return Graph(weights=str(path), device='cpu', **parameters)

    return start


def set_weights(graph, path):
    """Ask as ``ros2 param set`` does; the answer."""
    value = ParameterValue(type=4, string_value=str(path))
    request = SetParameters.Request(parameters=[Parameter(name='weights', value=value)])
    return graph.call(SetParameters, '/depth_node/set_parameters', request).results[0]


def load_weights(graph):
    """Call ``~/load_weights``."""
    return graph.call(Trigger, '/depth_node/load_weights', Trigger.Request())


def change_state(graph, transition):
    """Ask for a transition; whether it succeeded."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return graph.call(ChangeState, '/depth_node/change_state', request).success


def weights_of(graph):
    """The parameter."""
    return graph.node.get_parameter('weights').value


def metres(message):
    """The one depth of a message; its holes aside."""
    depth_m = np.frombuffer(message.data, '<f4')
    (found,) = np.unique(depth_m[~np.isnan(depth_m)].round(4))
    return found


def loaders():
    """Threads that load a model."""
    return [t for t in threading.enumerate() if t.name == 'model_loader']


def test_after_the_swap_everything_is_the_new_models(near, far, graph_on, capfd):
    """Range, focal length, confidence and embedding; and never the old one again."""
    with graph_on(near) as graph:
        depth = graph.listen('depth/image_rect')
        confidence, embedding = (graph.listen(t, Image) for t in ('depth/confidence', 'embedding'))
        old = weakref.ref(graph.node._model.estimator)
        with Camera(graph):
            wait_for(lambda: depth and confidence and embedding, 'the old model')
            assert set_weights(graph, far).successful
            wait_for(lambda: metres(depth[-1]) == 15, 'the new model', 30)
            confidence.clear(), embedding.clear()
            depth_before = len(depth)
            wait_for(lambda: len(depth) > depth_before + 3, 'more of it')
            assert not confidence and not embedding
        answers = [metres(m) for m in depth]
        assert answers == sorted(answers) and set(answers) == {2, 15}
        assert graph.node.statistics[0].failed == 0
        assert weights_of(graph) == str(far) and not loaders()
        gc.collect()
        assert old() is None, 'the old model stays in memory'
        lines = capfd.readouterr().err
        assert f'{far} on cpu, ready in' in lines and 'No confidence' in lines
        with Camera(graph):
            assert set_weights(graph, near).successful
            wait_for(lambda: confidence and embedding, 'the old model again', 30)


def test_the_service_loads_a_file_that_was_replaced(tmp_path, graph_on):
    path = known_weights(tmp_path / 'mine.safetensors')
    with graph_on(path) as graph:
        depth = graph.listen('depth/image_rect')
        with Camera(graph):
            wait_for(lambda: depth and metres(depth[-1]) == 2, 'the old model')
            known_weights(tmp_path / 'new.safetensors', depth_m=3.0).replace(path)
            answer = load_weights(graph)
            assert answer.success and 'loading beside' in answer.message
            wait_for(lambda: metres(depth[-1]) == 3, 'the new model', 30)


@pytest.mark.alone
def test_frames_go_on_while_loading(near, far, graph_on):
    """No gap longer than three periods; a busy machine stretches the period of before as well."""
    with graph_on(near) as graph:
        came_s, answers = [], []

        def receive(message):
            came_s.append(time.monotonic())
            answers.append(metres(message))

        graph.tester.create_subscription(Image, 'depth/image_rect', receive, 5)
        with Camera(graph, rate_hz=10.0):
            wait_for(lambda: came_s, 'depth')
            time.sleep(3)
            start = len(came_s)
            assert set_weights(graph, far).successful
            wait_for(lambda: answers[-1] == 15, 'the new model', 30)
            time.sleep(0.5)
        gaps_s = [b - a for a, b in pairwise(came_s)]
        period_s = max(gaps_s[1 : start - 1])
        assert max(gaps_s[start - 1 :]) <= 3 * period_s, (period_s, np.round(gaps_s, 2))


def cut_off(path, good):
    """The first half of a file."""
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def foreign(path, good):
    """Somebody else's safetensors."""
    save_file({'weight': torch.zeros(3)}, path)


def no_weights_at_all(path, good):
    """A checkpoint of another kind."""
    path.write_bytes(b'PK\x03\x04 a zip')


def missing(path, good):
    """Nothing there."""
    path.unlink(missing_ok=True)


def test_what_the_file_gives_away_is_refused_at_once(tmp_path, near, graph_on):
    """By parameter, and by the service where the file in use went bad; that model goes on."""
    mine, path = known_weights(tmp_path / 'mine.safetensors'), tmp_path / 'bad.safetensors'
    with graph_on(mine) as graph:
        for make, says in (
            (missing, 'neither a file nor a shipped name'),
            (cut_off, 'not a readable safetensors file'),
            (no_weights_at_all, 'not a readable safetensors file'),
            (foreign, 'not a depth model of this package'),
        ):
            make(path, near)
            result = set_weights(graph, path)
            assert not result.successful and says in result.reason and str(path) in result.reason
            missing(mine, near)
            make(mine, near)
            answer = load_weights(graph)
            assert not answer.success and says in answer.message and str(mine) in answer.message
            assert '\n' not in result.reason + answer.message
            assert weights_of(graph) == str(mine) and not loaders()
        depth = graph.listen('depth/image_rect')
        wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')


@pytest.mark.parametrize('name', ['a' * 300, '~nobody_of_this_name/a.safetensors'])
def test_a_name_that_no_file_can_have_is_refused_and_the_node_lives(name, near, graph_on):
    with graph_on(near) as graph:
        result = set_weights(graph, name)
        assert not result.successful and result.reason and '\n' not in result.reason
        assert weights_of(graph) == str(near)


def misfit(folder, good):
    """A sound file whose head has a tensor that no such head has."""
    path = folder / 'misfit.safetensors'
    with safe_open(good, 'pt') as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
        save_file(tensors | {'head.extra': torch.zeros(3)}, path, file.metadata())
    return path


def too_far(folder, good):
    """A sound file for distances that the node's limits exclude."""
    return known_weights(folder / 'too_far.safetensors', range_m=(8.0, 20.0), depth_m=9.0)


@pytest.mark.parametrize(('make', 'says'), [
    (misfit, 'has unknown 1 tensors (extra, …)'), (too_far, 'nothing is left of the 8 to 20 m'),
])  # fmt: skip
def test_what_fails_later_keeps_the_old_model_and_says_why(
    make, says, tmp_path, near, graph_on, capfd
):
    path = make(tmp_path, near)
    with graph_on(near, max_depth_m=7.0) as graph:
        depth = graph.listen('depth/image_rect')
        diagnostics = graph.listen('/diagnostics', DiagnosticArray)
        with Camera(graph):
            wait_for(lambda: depth, 'depth')
            assert set_weights(graph, path).successful
            wait_for(lambda: weights_of(graph) == str(near), 'the parameter to go back', 30)
            depth.clear(), diagnostics.clear()
            wait_for(lambda: len(depth) > 3 and len(diagnostics) > 1, 'more')
        assert {metres(m) for m in depth} == {2}
        lines = [n for n in capfd.readouterr().err.splitlines() if says in n]
        assert len(lines) == 1 and 'ERROR' in lines[0] and f'{near} goes on' in lines[0]
        (status,) = diagnostics[-1].status
        values = {v.key: v.value for v in status.values}
        assert values['weights'] == str(near) and values['weights being loaded'] == ''
        assert status.level == DiagnosticStatus.WARN
        assert says in values['last loading'] and str(path) in status.message


def test_full_memory_keeps_the_old_model_and_nothing_of_the_new_one(
    near, far, graph_on, monkeypatch
):
    """Where it shows on a device: in the first run, when the weights are there already."""
    with graph_on(near) as graph:
        failed = []

        def run_out(estimator, hw):
            failed.append(weakref.ref(estimator))
            raise torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate 2 GiB.')

        monkeypatch.setattr(type(graph.node._model.estimator), 'warm_up', run_out)
        assert set_weights(graph, far).successful
        wait_for(lambda: graph.node._model.trouble, 'the end of it', 30)
        assert 'OutOfMemoryError: CUDA out of memory. Tried' in graph.node._model.trouble
        gc.collect()
        assert [model() for model in failed] == [None]
        monkeypatch.undo()
        depth = graph.listen('depth/image_rect')
        wait_for(lambda: graph.publish('image', image_message()) or depth, 'depth')
        assert metres(depth[0]) == 2 and weights_of(graph) == str(near)


def test_one_model_is_loaded_at_a_time(near, far, graph_on):
    with graph_on(near, held=[far]) as graph:
        diagnostics = graph.listen('/diagnostics', DiagnosticArray)
        assert set_weights(graph, far).successful
        for refusal in (set_weights(graph, near).reason, load_weights(graph).message):
            assert f"weights '{far}' are still being loaded: one at a time." in refusal
        diagnostics.clear()
        wait_for(lambda: diagnostics, 'diagnostics')
        values = {v.key: v.value for v in diagnostics[0].status[0].values}
        assert values['weights'] == str(near) and values['weights being loaded'] == str(far)
        graph.factory.go.set()
        wait_for(lambda: graph.node._model.weights == str(far), 'the swap', 30)
        assert set_weights(graph, near).successful
        wait_for(lambda: graph.node._model.weights == str(near), 'the swap back', 30)


def test_deactivating_while_loading_swaps_all_the_same(near, far, graph_on):
    with graph_on(near, held=[far]) as graph:
        assert set_weights(graph, far).successful
        assert change_state(graph, Transition.TRANSITION_DEACTIVATE)
        graph.factory.go.set()
        wait_for(lambda: graph.node._model.weights == str(far), 'the swap', 30)
        assert change_state(graph, Transition.TRANSITION_ACTIVATE)
        depth = graph.listen('depth/image_rect')
        with Camera(graph):
            wait_for(lambda: depth, 'depth')
        wait_for(lambda: metres(depth[-1]) == 15, 'the new model')


def test_cleaning_up_while_loading_drops_the_attempt(near, far, graph_on):
    """The parameter names what the next configuring loads."""
    with graph_on(near, held=[far]) as graph:
        assert set_weights(graph, far).successful
        assert change_state(graph, Transition.TRANSITION_DEACTIVATE)
        assert change_state(graph, Transition.TRANSITION_CLEANUP)
        answer = load_weights(graph)
        assert not answer.success and 'the node is unconfigured' in answer.message
        graph.factory.go.set()
        wait_for(lambda: not loaders(), 'the thread to end', 30)
        assert graph.node._model is None and weights_of(graph) == str(far)
        assert change_state(graph, Transition.TRANSITION_CONFIGURE)
        assert graph.node._model.weights == str(far)


def test_shutting_down_or_destroying_while_loading_is_clean(near, far, graph_on, capfd):
    with graph_on(near, held=[far]) as graph:
        assert set_weights(graph, far).successful
        assert change_state(graph, Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert graph.state == 'finalized'
    with graph_on(near, held=[far]) as other:
        assert set_weights(other, far).successful
    graph.factory.go.set(), other.factory.go.set()
    wait_for(lambda: not loaders(), 'the threads to end', 30)
    assert 'ERROR' not in capfd.readouterr().err
