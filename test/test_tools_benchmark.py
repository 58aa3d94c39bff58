"""``vlm-depth benchmark`` without a graph: clocks, floors, engines, peers, tables, mistakes."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree

from desk_sets import frame, MODEL, write_set, write_weights
import pytest
import torch
from torch import nn
from vlm_depth_ros.core import engines
from vlm_depth_ros.core.config import ModelConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError
from vlm_depth_ros.core.model import DepthModel
from vlm_depth_ros.tools import (
    bench_chart,
    bench_floor,
    bench_graph,
    bench_peers,
    bench_report,
    benchmark,
)
from vlm_depth_ros.tools.bench_compare import paired_rows
from vlm_depth_ros.tools.bench_engines import call_of, Choice, choices_of, Foreign, unchecked
from vlm_depth_ros.tools.bench_floor import Floor, floor_of, measure_rates, Rates, Work, work_of
from vlm_depth_ros.tools.bench_machine import busy_s, Load
from vlm_depth_ros.tools.bench_measure import Bench, camera_rows, single_rows
from vlm_depth_ros.tools.bench_ours import Ours
from vlm_depth_ros.tools.bench_sizes import size_rows
from vlm_depth_ros.tools.bench_timing import LEAST_RUNS, time_calls, WARM_UP
from vlm_depth_ros.tools.cli import main

pytestmark = pytest.mark.usefixtures('one_thread')

CPU = torch.device('cpu')
EAGER = [Choice('eager', 'fp32'), Choice('eager', 'bf16')]
RATES = Rates({'fp32': 1e12, 'bf16': 4e12}, 1e9)
BENCH = Bench(CPU, RATES, 1)


class FakeClock:
    """Stands still until a call takes its time; each call has a duration for every round."""

    def __init__(self, **seconds):
        self.now_s, self.order = 0.0, []
        self.calls = {name: self._call(name, iter(values)) for name, values in seconds.items()}

    def __call__(self):
        return self.now_s, 3 * self.now_s

    def _call(self, name, durations):
        def call():
            self.order.append(name)
            self.now_s += next(durations)

        return call


@pytest.fixture(scope='module')
def ours():
    return made_ours()


def made_ours(choices=EAGER):
    torch.manual_seed(0)
    model = DepthModel(ModelConfig.from_dict(MODEL)).eval()
    model.freeze_tower()
    return Ours('tiny', model, choices, frame(2.0), CPU)


# --- time ---------------------------------------------------------------------------------------


def test_times_are_of_the_rounds_after_warming_up():
    slow, counted = [9.0] * WARM_UP, [0.001, 0.005, 0.002, 0.003, 0.004]
    clock = FakeClock(a=slow + counted, b=[0.01] * (WARM_UP + 5))
    found = time_calls(clock.calls, 5, clock)
    assert found['a'].median_ms == pytest.approx(3.0)
    assert found['a'].least_ms == pytest.approx(1.0)
    assert found['a'].p5_ms == pytest.approx(1.2) and found['a'].p95_ms == pytest.approx(4.8)
    assert found['a'].p99_ms == pytest.approx(4.96)
    assert found['a'].cpu_ms == pytest.approx(9.0) and found['a'].runs == 5
    assert found['b'].median_ms == found['b'].least_ms == pytest.approx(10.0)


def test_each_call_runs_once_a_round_beside_changing_neighbours():
    rounds = WARM_UP + 20
    clock = FakeClock(**{name: [0.001] * rounds for name in 'abc'})
    time_calls(clock.calls, 20, clock)
    orders = [''.join(clock.order[i : i + 3]) for i in range(0, 3 * rounds, 3)]
    assert {''.join(sorted(order)) for order in orders} == {'abc'}
    assert len(set(orders)) > 3


@pytest.mark.parametrize(('limit_s', 'runs'), [(5.0, LEAST_RUNS), (13.5, 12), (99.0, 20)])
def test_a_limit_of_time_ends_the_rounds_but_leaves_some(limit_s, runs):
    clock = FakeClock(a=[1.0] * (WARM_UP + 20))
    assert time_calls(clock.calls, 20, clock, limit_s=limit_s)['a'].runs == runs


# --- floor --------------------------------------------------------------------------------------


def test_work_is_what_pencil_and_paper_say():
    """Each product reads weights and map and writes a map; what stands between is fused."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(),
                            nn.Linear(4 * 5 * 6, 7))  # fmt: skip
    found = work_of(lambda: network(torch.zeros(2, 3, 5, 6)))
    conv_flops, line_flops = 2 * 2 * 4 * 30 * 27, 2 * 2 * 7 * 120
    assert found.flops == conv_flops + line_flops
    conv = 2 * 3 * 30 + 4 * 3 * 9 + 2 * 4 * 30
    line = 2 * 120 + 7 * 120 + 7 + 2 * 7
    assert found.elements == conv + line
    assert found.products == 2 and found.operations >= 4


@pytest.mark.parametrize(('network', 'flops', 'products'), [
    # Two images of 5 tokens of 8: q, k and v, 2 heads of 4 that look at all tokens, and out.
    (nn.MultiheadAttention(8, 2, batch_first=True),
     2 * 10 * 8 * 24 + 2 * 2 * (2 * 2 * 25 * 4) + 2 * 10 * 8 * 8, 3),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
     2 * 10 * 8 * 24 + 2 * 2 * (2 * 2 * 25 * 4) + 2 * 10 * 8 * 8 + 2 * (2 * 10 * 8 * 16), 5),
], ids=['attention', 'layer'])  # fmt: skip
def test_attention_is_counted_product_by_product(network, flops, products):
    """PyTorch's fast path would do all of it in one operation that nothing counts."""
    tokens, network = torch.zeros(2, 5, 8), network.eval()
    given = (tokens,) * (3 if isinstance(network, nn.MultiheadAttention) else 1)
    found = work_of(lambda: network(*given))
    weights = sum(p.numel() for n, p in network.named_parameters() if 'norm' not in n)
    assert found.flops == flops and found.products >= products
    assert found.elements >= weights + tokens.numel()


def test_the_fast_path_is_back_after_the_count():
    with pytest.raises(ZeroDivisionError):
        work_of(lambda: 1 / torch.backends.mha.get_fastpath_enabled())
    assert torch.backends.mha.get_fastpath_enabled()


def test_floor_is_the_larger_of_arithmetic_and_traffic():
    work = Work(flops=2_000_000_000, elements=1_000_000, products=1, operations=1)
    fp32, bf16 = (floor_of(work, p, RATES) for p in ('fp32', 'bf16'))
    assert (fp32.arithmetic_ms, fp32.traffic_ms) == pytest.approx((2.0, 4.0))
    assert (bf16.arithmetic_ms, bf16.traffic_ms) == pytest.approx((0.5, 2.0))
    assert fp32.ms == pytest.approx(4.0)
    assert floor_of(work, 'fp32', RATES, 3_000_000).ms == pytest.approx(7.0)
    assert Floor(5.0, 1.0).ms == 5.0
    assert floor_of(None, 'fp32', RATES) is None


def test_rates_are_the_best_of_several_attempts(monkeypatch):
    monkeypatch.setitem(bench_floor.SIDE, 'cpu', 8)
    monkeypatch.setitem(bench_floor.COPIED_BYTES, 'cpu', 4000)
    took_s = iter([2.0, 0.5, *[1.0] * 8] * 2)
    readings = (t for s in took_s for t in ((0.0, 0.0), (s, 0.0)))
    found = measure_rates(CPU, ['fp32'], lambda: next(readings))
    assert found.flops_per_s == {'fp32': 2 * 8**3 / 0.5}
    assert found.bytes_per_s == 2 * 4000 / 0.5


def test_rates_are_measured_in_a_quarter_of_the_memory_that_can_be_had(monkeypatch):
    """Here for copies of 128 kB, and for three matrices of 147 x 147."""
    monkeypatch.setattr(bench_floor, 'free_bytes', lambda device: 2**20)
    readings = (t for _ in range(100) for t in ((0.0, 0.0), (1.0, 0.0)))
    found = measure_rates(CPU, ['fp32'], lambda: next(readings))
    assert found.bytes_per_s == 2 * 2**17 and found.flops_per_s == {'fp32': 2 * 147**3}


def test_some_memory_can_be_had():
    assert 2**20 < bench_floor.free_bytes(CPU) < 2**50


# --- our networks -------------------------------------------------------------------------------


def test_network_and_estimator_are_timed_in_each_precision_above_their_floor(ours):
    network, estimator = single_rows(ours, BENCH)
    assert [(r['engine'], r['precision']) for r in network] == [('eager', 'fp32'), (
        'eager', 'bf16')]  # fmt: skip
    work = ours.work()
    for row in network:
        floor = floor_of(work, row['precision'], RATES)
        assert row['median_ms'] > 0 and row['floor_ms'] == floor.ms
        assert row['over_floor'] == row['median_ms'] / floor.ms
    # Weights, and what is alive at once.
    weights_mb = sum(4 * p.numel() for p in ours.model.parameters()) / 1e6
    assert weights_mb < network[0]['memory_mb'] < estimator[0]['memory_mb'] < weights_mb + 10
    assert {r['runs'] for r in network + estimator} == {1}
    # 48 x 64 pixels of 3 bytes come in, depth of 4 and every fourth as a point of 16 go out.
    more_ms = 48 * 64 * (3 + 4 + 4) / RATES.bytes_per_s * 1e3
    of_network, of_estimator = (rows[0]['floor_traffic_ms'] for rows in (network, estimator))
    assert of_estimator == pytest.approx(of_network + more_ms)


def test_stages_add_up_and_a_frame_takes_one_network_call(ours):
    ticks = iter(range(1000))
    stages = ours.stages(EAGER[0], 3, lambda: float(next(ticks)))
    assert stages.milliseconds == {'preprocess': 1e3, 'network': 1e3, 'refine and pack': 1e3}
    assert stages.other_share == pytest.approx(2 / 3) and stages.network_calls == 1
    assert ours.ready[EAGER[0]].clock is None


def test_all_cameras_share_a_network_call(ours):
    seen = []
    hook = ours.model.register_forward_hook(lambda _, args, found: seen.append(len(args[0])))
    outputs = ours.estimator_call(EAGER[0], cameras=3)()
    hook.remove()
    assert seen == [3] and len(outputs) == 3 and all(o.points is not None for o in outputs)


def test_growth_is_cost_per_pixel_and_camera_over_the_smallest(ours):
    for rows, pixels in (
        (camera_rows(ours, [2, 1], BENCH), {1: 64 * 64, 2: 2 * 64 * 64}),
        (size_rows(ours, [128, 64], BENCH)[0], {64: 64 * 64, 128: 128 * 128}),
    ):
        assert len(rows) == 4
        for row in rows:
            key = row['cameras'] if row['part'] == 'estimator' else row['input_hw'][0]
            assert row['ns_per_pixel'] == pytest.approx(row['median_ms'] * 1e6 / pixels[key])
            least = next(r for r in rows if r['growth'] == 1
                         and r['precision'] == row['precision'])  # fmt: skip
            assert row['growth'] == pytest.approx(row['ns_per_pixel'] / least['ns_per_pixel'])


def test_an_engine_that_answers_something_else_is_not_measured_in_its_name(monkeypatch):
    monkeypatch.setitem(engines.CONVERTED, 'openvino', lambda graph, precision: lambda image: 1)
    monkeypatch.setattr(engines, '_library', lambda name: None)
    monkeypatch.setattr(engines, 'exported', lambda model: None)
    wrong = Choice('openvino', 'fp32')
    found = made_ours([*EAGER, wrong])
    assert list(found.ready) == list(found.estimators) == EAGER
    assert found.failed == {wrong: 'cannot run it, or answers something else than eager fp32'}
    with pytest.raises(ConfigError, match='tiny: runs in none of openvino fp32'):
        made_ours([wrong])


@pytest.mark.parametrize(('text', 'says'), [
    ('tensorrt', "engines 'tensorrt': 'tensorrt' is not measured at all. Expected some of eager"),
    ('eager,auto', "'auto' is not measured on cpu"),
])  # fmt: skip
def test_engine_that_is_not_measured_is_named(text, says):
    with pytest.raises(ConfigError) as refused:
        choices_of(text, CPU)
    assert says in str(refused.value)


def test_every_installed_engine_is_measured_but_the_compiler_only_where_named(monkeypatch):
    monkeypatch.setattr('vlm_depth_ros.tools.bench_engines.installed', lambda: ['onnxruntime'])
    assert [str(c) for c in choices_of(None, CPU)] == [
        'eager fp32', 'eager bf16', 'onnxruntime fp32'
    ]  # fmt: skip
    assert [c.engine for c in choices_of('compiled', CPU)] == ['compiled', 'compiled']
    assert {c.engine for c in choices_of(None, torch.device('cuda'))} == {'eager'}
    graphs = choices_of('eager,auto', torch.device('cuda'))
    assert [c.engine for c in graphs] == 3 * ['eager'] + 3 * ['auto']


def test_an_exported_file_is_measured_in_the_engines_that_take_it(tmp_path, capsys, small_rates):
    """Its arithmetic is not known: no floor, no share of one."""
    for library in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(library)
    weights = write_weights(tmp_path / 'tiny.safetensors')
    file, out = tmp_path / 'tiny.onnx', tmp_path / 'out'
    assert main(['export', str(weights), str(file)]) == 0
    source, answer = write_set(tmp_path / 'set', [2.0]), tmp_path / 'r.json'
    flags = ['benchmark', '--weights', str(file), '--source', str(source), '--device', 'cpu',
             '--runs', '1', '--frames', '0']  # fmt: skip
    given = ['--engines', 'onnxruntime', '--input-sizes', '64', '--json', str(answer)]
    assert main([*flags, *given, '--out', str(out)]) == 0
    found = json.loads(answer.read_text())
    for part in ('network', 'estimator', 'scaling'):
        (row,) = found[part]
        assert (row['engine'], row['precision']) == ('onnxruntime', 'fp32')
        assert row['median_ms'] > 0 and row['floor_ms'] is row['over_floor'] is None
    assert found['network'][0]['flops'] is found['network'][0]['memory_mb'] is None
    assert '| - | - | - |' in (out / 'table.md').read_text()
    capsys.readouterr()
    assert main([*flags, '--engines', 'eager']) == 1
    assert "'eager' is not measured for an exported file." in capsys.readouterr().err


def test_an_exported_file_without_an_engine_is_one_line(monkeypatch):
    monkeypatch.setattr('vlm_depth_ros.tools.bench_engines.installed', lambda: [])
    with pytest.raises(ConfigError, match='takes one of openvino, onnxruntime, on the CPU, and '):
        choices_of(None, CPU, is_exported=True)


# --- peers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'millions'), [
    ('depth-anything-v2-small', 24.8), ('depth-anything-v2-base', 97.5), ('dpt-large', 343.0),
    ('zoedepth-nyu', 343.8),
])  # fmt: skip
def test_peer_has_the_published_size_and_answers_at_each_input(name, millions):
    pytest.importorskip('transformers')
    peer = bench_peers.PEERS[name]
    with torch.device('meta'):
        model = peer.build().eval()
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters / 1e6 == pytest.approx(millions, abs=0.1)
        for hw in (*peer.sizes_hw.values(), bench_peers.COMMON_HW):
            found = bench_peers.peer_at(model, hw)(torch.zeros(1, 3, *hw))
            assert found.depth_m.shape == (1, 1, *hw)


def test_peer_stands_beside_ours_in_the_same_rounds(ours):
    conv = nn.Conv2d(3, 1, 1)
    peer = Foreign(conv, lambda model, image: model(image), SimpleNamespace()).eval()
    image = torch.zeros(1, 3, 8, 8)
    about = {'peer': 'one convolution', 'size': 'own', 'input_hw': [8, 8]}
    calls = {EAGER[0]: call_of(peer, image, 'fp32')}
    rows = paired_rows(about, calls, work_of(lambda: peer(image)), ours, BENCH)
    ways = [(r['engine'], r['precision'], r['ours_precision'], r['is_fastest']) for r in rows]
    assert ways[:2] == [('eager', 'fp32', 'fp32', False), ('eager', 'fp32', 'bf16', False)]
    assert len(rows) == 3 and rows[2]['is_fastest']
    fastest = min(rows[:2], key=lambda r: r['ours_estimator_ms'])
    assert rows[2]['ours_estimator_ms'] == fastest['ours_estimator_ms']
    for row in rows:
        assert row['flops'] == 2 * 3 * 64 and row['ours'] == 'tiny'
        for part in ('network', 'estimator'):
            expected = row[f'ours_{part}_ms'] / row['median_ms']
            assert row[f'{part}_over_peer'] == pytest.approx(expected)


def test_a_peer_that_cannot_be_converted_is_told(monkeypatch):
    monkeypatch.setattr(
        'vlm_depth_ros.tools.bench_engines.exported', lambda model: 1 / 0
    )  # fmt: skip
    model = nn.Identity()
    runs, failed = unchecked(model, [EAGER[0], Choice('openvino', 'fp32')])
    assert runs == {EAGER[0]: model}
    assert failed == {Choice('openvino', 'fp32'): 'division by zero'}


# --- machine, tables ----------------------------------------------------------------------------


def test_work_of_others_is_read_from_proc():
    stat = 'cpu  100 20 30 4000 50 6 4 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n'
    assert busy_s(stat) == pytest.approx(160 / 100)


@pytest.mark.parametrize('others_s, idle', [(0.8, True), (1.2, False)])
def test_machine_was_idle_unless_others_took_a_twentieth_of_it(others_s, idle, monkeypatch):
    moments = iter([(0.0, 5.0, 1.0), (10.0, 9.0 + others_s, 5.0)])
    monkeypatch.setattr(Load, '_now', staticmethod(lambda: next(moments)))
    monkeypatch.setattr('os.cpu_count', lambda: 2)
    assert Load().found()['was_idle'] is idle


def result(**change):
    times = {'runs': 3, 'median_ms': 20.0, 'least_ms': 19.0, 'p5_ms': 19.5, 'p95_ms': 25.0,
             'p99_ms': 28.0, 'cpu_ms': 39.0, 'floor_ms': 10.0, 'floor_arithmetic_ms': 10.0,
             'floor_traffic_ms': 1.0, 'over_floor': 2.0}  # fmt: skip
    way = {'engine': 'eager', 'precision': 'fp32', 'input_hw': [192, 256]}
    found = {
        'date': '2026-01-01', 'command': 'vlm-depth benchmark', 'runs': 3, 'peer_runs': 2,
        'machine': {'processor': 'Some CPU', 'cores': 2, 'threads': 2, 'memory_gb': 8.0,
                    'gpu': None, 'system': 'Linux', 'python': '3.11', 'versions': {'torch': '2'}},
        'rates': {'gflop_per_s': {'fp32': 100.0}, 'gb_per_s': 20.0},
        'load': {'load_average_before': 0.0, 'load_average_after': 1.5, 'others_share': 0.001,
                 'was_idle': True},
        'network': [{'network': 'pocket', 'flops': 10**9, 'memory_mb': 64.2, **way,
                     **times}], 'estimator': [],
        'stages': [{'network': 'pocket', **way, 'network_calls': 1, 'other_share': 0.1,
                    'milliseconds': {'preprocess': 1.0, 'network': 18.0, 'refine and pack': 1.0}}],
        'scaling': [], 'not_measured': ['the node end to end: rclpy is not installed'],
        'graph': [{
            'cameras': 1, 'engine': 'openvino, 1 thread', 'not_of_record': [],
            'is_saturated': False, 'saturation_hz': 30.0, 'played_hz': 24.0,
            'latency_ms': {'p50': 40.0, 'p95': 50.0, 'p99': 60.0}, 'missed': 1, 'frames': 300,
            'jitter_ms': 5.0, 'node_resident_mb': 900.0, 'gpu_memory_mb': None,
            'cpu_percent': {'node': 120.0, 'players': 20.0, 'reader': 5.0},
            'floor_ms': 10.0, 'over_floor': 4.0,
        }],
        'peers': [{'peer': 'other', 'size': 'own', **way, 'flops': 3e9, **times, 'ours': 'pocket',
                   'ours_engine': 'eager', 'ours_precision': 'fp32', 'ours_network_ms': 1.0,
                   'ours_estimator_ms': 2.0, 'network_over_peer': 0.05,
                   'estimator_over_peer': 0.1, 'is_fastest': True}],
    }  # fmt: skip
    return found | change


def test_page_has_every_figure_and_what_stands_beside_it():
    page = bench_report.markdown(result())
    assert '| pocket | eager fp32 | 192x256 | 3 | 20.0 | 25.0 | 28.0 | 39.0 | 64 | 10.0 |' in page
    assert '| eager fp32 | 1.00 | 18.0 | 1.00 | 10.0% | 1 |' in page
    assert '| 1 | openvino, 1 thread | over 30.0 | 24.0 | 40.0 | 50.0 | 60.0 | 1 of 300 |' in page
    assert '| other | 192x256 (own) | 3.0 | eager fp32 (fastest) | 3 | 20.0 |' in page
    assert 'Some CPU, 2 cores, 2 threads, 8 GB, no GPU' in page and 'torch 2' in page
    assert 'Not measured: the node end to end: rclpy is not installed.' in page
    assert 'Cost for pixels' not in page and 'not idle' not in page
    widths = {len({line.count('|') for line in t.splitlines() if line.startswith('|')})
              for t in page.split('**') if '|' in t}  # fmt: skip
    assert widths == {1}


def test_figures_of_a_busy_machine_say_so():
    load = result()['load'] | {'was_idle': False, 'others_share': 0.6}
    assert 'The machine was not idle: these figures are of no record.' in bench_report.markdown(
        result(load=load)
    )


def test_a_run_of_few_frames_says_so():
    (row,) = result()['graph']
    row['not_of_record'] = ['fewer than 300 images of a camera']
    assert (
        'The node with 1 camera(s): fewer than 300 images of a camera, so its figures are of no '
        'record.'
    ) in bench_report.about(result(graph=[row]))


def test_cameras_and_sizes_are_drawn_as_lines():
    rows = [
        {'part': part, 'engine': engine, 'precision': 'fp32', 'cameras': cameras,
         'input_hw': [side, side], 'median_ms': ms}
        for engine in ('eager', 'openvino')
        for part, cameras, side, ms in (('estimator', 1, 64, 10.0), ('estimator', 4, 64, 40.0),
                                        ('network', 1, 64, 5.0), ('network', 1, 128, 20.0))
    ]  # fmt: skip
    drawn = bench_report.charts(result(scaling=rows))
    assert list(drawn) == ['benchmark.svg', 'peers.svg', 'cameras.svg', 'sizes.svg']
    for name in ('cameras.svg', 'sizes.svg'):
        root = ElementTree.fromstring(drawn[name])
        lines = [e.get('points').split() for e in root.iter() if e.tag.endswith('polyline')]
        assert len(lines) == 2
        # Four times as many cost four times as much: a straight line through the origin.
        (x, y), (far_x, far_y) = (map(float, point.split(',')) for point in lines[0])
        assert far_x - 60 == pytest.approx(4 * (x - 60), abs=1)
        assert 296 - far_y == pytest.approx(4 * (296 - y), abs=1)


def test_charts_are_whole_pictures_with_a_bar_for_each_number(tmp_path):
    paths = bench_report.write(result(), tmp_path)
    assert [p.name for p in paths] == ['table.md', 'benchmark.svg', 'peers.svg']
    root = ElementTree.parse(tmp_path / 'peers.svg').getroot()
    assert root.tag.endswith('svg')
    widths = [float(e.get('width')) for e in root.iter() if e.get('height') == '12' and e.get(
        'x') == '280']  # fmt: skip
    theirs, mine = widths[-2:]
    assert theirs == pytest.approx(10 * mine, rel=0.01)


def test_a_bar_of_seconds_is_written_without_a_power_of_ten():
    drawn = bench_chart.lying_bars(['a', 'b'], {'peer': [1416.4, 51.54]}, 'ms')
    assert '>1416<' in drawn and '>51.5<' in drawn


# --- the verb -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def given(tmp_path_factory):
    """A tiny weights file and a set, as flags."""
    root = tmp_path_factory.mktemp('given')
    weights, source = write_weights(root / 'tiny.safetensors'), write_set(root / 'set', [2.0])
    return ['benchmark', '--weights', str(weights), '--source', str(source), '--device', 'cpu',
            '--engines', 'eager', '--runs', '1', '--frames', '0']  # fmt: skip


@pytest.fixture
def small_rates(monkeypatch):
    monkeypatch.setitem(bench_floor.SIDE, 'cpu', 64)
    monkeypatch.setitem(bench_floor.COPIED_BYTES, 'cpu', 2**16)


def test_verb_measures_prints_and_writes(given, tmp_path, capsys, small_rates):
    out = tmp_path / 'out'
    flags = ['--cameras', '1,2', '--input-sizes', '64,96', '--json', str(tmp_path / 'r.json'),
             '--out', str(out)]  # fmt: skip
    assert main(given + flags) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / 'r.json').read_text())
    assert found['weights'].endswith('tiny.safetensors') and found['image_hw'] == [48, 64]
    assert len(found['network']) == len(found['estimator']) == len(found['stages']) == 2
    assert len(found['scaling']) == 8 and found['graph'] == found['peers'] == []
    assert found['not_measured'] == ['the node end to end: --frames 0']
    assert found['machine']['versions']['torch'] == torch.__version__.partition('+')[0]
    assert found['load'].keys() >= {'load_average_before', 'load_average_after', 'was_idle'}
    assert 'Network alone' in said and 'Not measured: the node end to end: --frames 0.' in said
    assert (out / 'table.md').read_text() == bench_report.markdown(found)
    assert ElementTree.parse(out / 'benchmark.svg').getroot() is not None


@pytest.mark.parametrize(('flags', 'says'), [
    (['--weights', 'nowhere'], "weights 'nowhere': neither a file"),
    (['--source', 'nowhere'], 'nowhere: does not exist'),
    (['--runs', '0'], '--runs 0: expected at least 1.'),
    (['--peer-runs', '0'], '--peer-runs 0: expected at least 1.'),
    (['--frames', '-1'], '--frames -1: expected at least 0.'),
    (['--cameras', '0'], "--cameras '0': expected whole numbers from 1, as 1,2,4."),
    (['--cameras', 'two'], "--cameras 'two': expected whole numbers"),
    (['--input-sizes', '224,x'], "--input-sizes '224,x': expected whole numbers"),
    (['--input-sizes', '100'], '--input-sizes 100: expected multiples of 32, which this tower '
     'takes; the nearest is 96.'),
    (['--engines', 'tensorrt'], "engines 'tensorrt': 'tensorrt' is not measured at all."),
    (['--device', 'gpu'], "device = 'gpu': expected auto, cpu, cuda or cuda:N."),
    (['--param', 'engine'], "--param 'engine': expected NAME:=VALUE."),
    (['--param', 'precision:=fp8'], "precision = 'fp8': expected one of"),
    (['--peers', 'midas'], "peers: 'midas' is not known. Expected some of"),
    (['--out', __file__], 'is a file; name a folder.'),
], ids=lambda v: ' '.join(v)[-30:] if isinstance(v, list) else '')  # fmt: skip
def test_mistake_is_one_line(given, flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(given + flags) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('vlm-depth benchmark: ') and says in lines[0]


def test_missing_transformers_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'transformers', None)
    with pytest.raises(DependencyError) as missing:
        bench_peers.chosen_peers([])
    assert str(missing.value).startswith('peers: ') and "'vlm_depth_ros[blip2]'" in str(
        missing.value
    )
    assert '\n' not in str(missing.value)
    assert bench_peers.chosen_peers([bench_peers.FAITHFUL]) == [bench_peers.FAITHFUL]


def test_input_sizes_are_refused_where_the_exported_file_has_one():
    spec = SimpleNamespace(is_hierarchical=False, input_hw=(224, 224), size_multiple=16)
    with pytest.raises(ConfigError, match='this file was exported for 224x224 only. Leave it'):
        benchmark.require_sizes(spec, [224], is_exported=True)
    benchmark.require_sizes(spec, [], is_exported=True)
    benchmark.require_sizes(spec, [224, 512], is_exported=False)
    with pytest.raises(ConfigError, match='518: expected multiples of 16, .* nearest is 512'):
        benchmark.require_sizes(spec, [518], is_exported=False)


def test_node_is_not_measured_without_rclpy_and_a_failure_is_told(ours, monkeypatch, tmp_path):
    args = SimpleNamespace(
        param=['engine:=eager'], tower_weights='t.pt', weights='w', device='cpu', frames=5,
        out=tmp_path,
    )  # fmt: skip
    missing = []
    monkeypatch.setattr(bench_graph, 'find_spec', lambda name: None)
    assert benchmark.graph_rows(args, ours, 'fp32', RATES, [1], tmp_path, missing) == []
    monkeypatch.setattr(bench_graph, 'find_spec', lambda name: name)
    asked = []

    def refuse(command, **kwargs):
        asked.append(command)
        return SimpleNamespace(returncode=1, stderr='noise\nbench: the node refuses: no\n')

    monkeypatch.setattr(bench_graph.subprocess, 'run', refuse)
    assert benchmark.graph_rows(args, ours, 'fp32', RATES, [1, 2], tmp_path, missing) == []
    assert missing[0].startswith('the node end to end: rclpy is not installed')
    assert missing[2] == 'the node with 2 camera(s): ended with code 1: the node refuses: no'
    assert asked[1][asked[1].index('--cameras') + 1] == '2'
    assert asked[0][-4:] == ['--param', 'engine:=eager', '--param', 'tower_weights:=t.pt']
