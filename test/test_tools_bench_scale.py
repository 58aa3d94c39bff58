"""What must not grow, counted: work with cameras and pixels, and shares within one run."""

from dataclasses import asdict, dataclass
import time

import pytest
import torch
import towers  # noqa: F401, adds the tiny ones
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.model import DepthModel, load_model
from vlm_depth_ros.files.source import SourceFrame
from vlm_depth_ros.tools.bench_engines import Choice
from vlm_depth_ros.tools.bench_floor import Rates, work_of
from vlm_depth_ros.tools.bench_measure import Bench
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_sizes import rebuilt, size_rows
from vlm_depth_ros.tools.bench_timing import clock_of, time_calls

pytestmark = pytest.mark.usefixtures('one_thread')

CPU = torch.device('cpu')
EAGER, OPENVINO = Choice('eager', 'fp32'), Choice('openvino', 'fp32')
TINY = {'depth_range_m': [0.1, 10.0], 'camera': {'fx_per_width': 0.8, 'fy_per_height': 1.08}}


@dataclass(frozen=True)
class Limits:
    """Of the network at 192 x 256, a little more than it takes today."""

    flops: float
    elements: float
    products: int
    operations: int
    """PyTorch's own versions differ a little."""


LIMITS = {
    'space_clip': Limits(flops=1.75e9, elements=15e6, products=102, operations=450),
    'scale_shape': Limits(flops=0.74e9, elements=15e6, products=110, operations=450),
}
"""By the head that the shipped `pocket` has: THE place to change with it."""


def model_of(tower: str, head: dict, hw: tuple[int, int]) -> DepthModel:
    torch.manual_seed(0)
    config = {**TINY, 'tower': tower, 'input_hw': list(hw), 'head': head}
    model = DepthModel(ModelConfig.from_dict(config))
    model.freeze_tower()
    return model.eval().requires_grad_(False)


def picture() -> SourceFrame:
    return SourceFrame(torch.arange(480 * 640 * 3).to(torch.uint8).view(480, 640, 3).numpy())


@pytest.fixture(scope='module')
def pocket():
    return Ours('pocket', load_model('pocket'), [EAGER], picture(), CPU)


@pytest.fixture(scope='module')
def scale_shape():
    return model_of('pocket-tower', {'name': 'scale_shape'}, (192, 256))


@pytest.fixture(params=['pocket', 'scale_shape'])
def network(request):
    """The one that is shipped, and the head of ours whose attention is quadratic in its cells."""
    found = request.getfixturevalue(request.param)
    return found.model if isinstance(found, Ours) else found


def work(network, batch: int, hw: tuple[int, int]):
    image = torch.zeros(batch, 3, *hw)
    return work_of(lambda: network(image))


def test_networks_ask_for_no_more_work_than_they_did(pocket, scale_shape):
    """Counted, not timed."""
    assert pocket.input_hw == (192, 256)
    shipped = pocket.model.config.head['name']
    for name, model in ((shipped, pocket.model), ('scale_shape', scale_shape)):
        found = work(model, 1, (192, 256))
        for what, limit in asdict(LIMITS[name]).items():
            assert getattr(found, what) <= limit, (name, found)


def test_eight_cameras_cost_no_more_than_eight_times_one(network):
    one, eight = (work(network, batch, (192, 256)) for batch in (1, 8))
    assert eight.flops <= 8 * one.flops * 1.001
    assert eight.elements <= 8 * one.elements
    # They share every call.
    assert eight.products == one.products and eight.operations <= one.operations * 1.05


def test_work_grows_no_faster_than_pixels(network):
    small, large = (work(network, 1, (side, side)) for side in (224, 512))
    pixels = (512 / 224) ** 2
    assert large.flops <= 1.05 * pixels * small.flops
    assert large.elements <= 1.05 * pixels * small.elements


def test_a_frame_of_pocket_is_one_network_call_and_little_besides(pocket):
    """Shares of the CPU time of one thread, which other work on the machine hardly changes."""
    stages = pocket.stages(EAGER, 5, time.thread_time)
    assert stages.network_calls == 1
    assert stages.other_share < 0.25, asdict(stages)


def test_openvino_runs_pocket_in_four_fifths_of_the_cpu_time_of_eager():
    """CPU time of the process in rounds that take turns: other work meets both alike."""
    for library in ('openvino', 'onnx', 'onnxscript'):
        pytest.importorskip(library)
    both = Ours('pocket', load_model('pocket'), [EAGER, OPENVINO], picture(), CPU)
    calls = {choice: both.network_call(choice) for choice in both.ready}
    found = time_calls(calls, 20, clock_of(CPU))
    assert found[OPENVINO].cpu_ms <= 0.8 * found[EAGER].cpu_ms, found


def test_a_transformer_is_built_anew_for_each_input_size():
    """Its cost is counted in what it then does, with the positions of that size."""
    model = model_of('tiny-vit', {'name': 'linear'}, (64, 64))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = Ours('tiny', model, [EAGER], picture(), CPU)
    bench = Bench(CPU, Rates({'fp32': 1e12}, 1e9), 2)
    rows, missing = size_rows(ours, [64, 128], bench)
    assert [r['input_hw'] for r in rows] == [[64, 64], [128, 128]] and not missing
    assert all(r['median_ms'] > 0 and r['runs'] == 2 for r in rows)
    # Four times the patches, and attention among them.
    assert 4 < rows[1]['floor_arithmetic_ms'] / rows[0]['floor_arithmetic_ms'] < 16
    assert rebuilt(model, 128).backbone.spec.input_hw == (128, 128)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
