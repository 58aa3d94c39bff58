"""What was converted once is not converted again, and a bad file in the cache does no harm."""

import errno
import logging
import os
from pathlib import Path

import pytest
import torch
from towers import picture
from vlm_depth_ros.core import engines, graph_cache
from vlm_depth_ros.core.agreement import difference_of
from vlm_depth_ros.core.config import ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.engines import Engine, engine_of
from vlm_depth_ros.core.graph_cache import MOST_KEPT, slot_of
from vlm_depth_ros.core.inference_graph import exported
from vlm_depth_ros.core.model import DepthModel

for library in ('onnxruntime', 'onnx', 'onnxscript'):
    pytest.importorskip(library)

CPU = torch.device('cpu')
ON_ONNXRUNTIME = RuntimeConfig(device='cpu', engine='onnxruntime')
SLIM = {
    'name': 'space_clip', 'widths': (12, 8, 8, 8), 'film_width': 8, 'output_width': 4,
    'aux_heads': False,
}  # fmt: skip
TINY = ModelConfig('tiny-vit', SLIM, input_hw=(64, 96), camera=TrainingCamera(0.8, 1.1))


def made(seed=0, config=TINY):
    torch.manual_seed(seed)
    model = DepthModel(config).eval()
    model.freeze_tower()
    return model.requires_grad_(False)


@pytest.fixture(scope='module')
def tiny():
    return made()


@pytest.fixture(scope='module')
def kept(tiny):
    """The file that a first start leaves."""
    assert isinstance(engine_of(tiny, ON_ONNXRUNTIME, 'fp32', CPU), Engine)
    return slot_of(tiny)


@pytest.fixture
def slot(kept, tiny, tmp_path, monkeypatch):
    """The same file in a cache of this test's own; converting anew takes what `kept` holds."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    path = slot_of(tiny)
    path.parent.mkdir(parents=True)
    path.write_bytes(kept.read_bytes())
    return path


@pytest.fixture
def conversions(monkeypatch, kept):
    """Counts conversions, which take no time: they copy what `kept` holds."""
    count = []

    class Again:
        def save(self, path, external_data):
            Path(path).write_bytes(kept.read_bytes())

    monkeypatch.setattr(engines, 'exported', lambda model: count.append(model))
    monkeypatch.setattr(graph_cache, 'onnx_program', lambda program: Again())
    return count


def answers(tiny):
    """Start, and compare an answer with eager's."""
    engine = engine_of(tiny, ON_ONNXRUNTIME, 'fp32', CPU)
    image = picture((64, 96), 2)
    with torch.inference_mode():
        return isinstance(engine, Engine) and difference_of(tiny(image), engine(image), 1) < 1e-5


def test_the_second_start_converts_nothing(tiny, slot, conversions, caplog):
    os.utime(slot, (1, 1))
    assert answers(tiny) and conversions == [] and not caplog.records
    assert slot.stat().st_mtime > 1, 'a file that is used stays longest'


@pytest.mark.skipif(not engines._is_installed('openvino'), reason='needs openvino')
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_every_engine_and_precision_runs_the_same_file(precision, tiny, slot, conversions):
    runtime = RuntimeConfig('cpu', precision, engine='openvino')
    assert isinstance(engine_of(tiny, runtime, precision, CPU), Engine) and conversions == []


def test_a_file_belongs_to_its_weights_configuration_and_versions(tiny, monkeypatch):
    slots = {slot_of(tiny), slot_of(made(seed=1))}
    other = ModelConfig('tiny-vit', SLIM, input_hw=(96, 64), camera=TrainingCamera(0.8, 1.1))
    slots.add(slot_of(made(config=other)))
    nudged = made()
    next(nudged.head.buffers()).add_(1e-3)
    slots.add(slot_of(nudged))
    monkeypatch.setattr(graph_cache, '_version', lambda library: '99')
    slots.add(slot_of(tiny))
    monkeypatch.setattr(graph_cache, '_code_sha256', lambda: 'other')
    slots.add(slot_of(tiny))
    assert len(slots) == 6
    monkeypatch.undo()
    assert slot_of(made()) in slots


def truncated(good):
    return good[: len(good) // 2]


def foreign(good):
    return b'PK\x03\x04 a zip'


def empty(good):
    return b''


def of_another_network(good):
    """A sound graph: the first bytes of the largest weight are others."""
    import onnx

    model = onnx.load_from_string(good)
    largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    return model.SerializeToString()


@pytest.mark.parametrize('spoil', [truncated, foreign, empty, of_another_network])
def test_a_bad_file_is_dropped_with_one_warning(spoil, tiny, slot, kept, conversions, caplog):
    slot.write_bytes(spoil(kept.read_bytes()))
    assert answers(tiny) and len(conversions) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and '\n' not in record.getMessage()
    assert f'{slot} is dropped, and the network converted again: engine' in record.getMessage()
    assert slot.read_bytes() == kept.read_bytes()


def no_folder(monkeypatch, folder):
    (folder / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'file'))


def no_home(monkeypatch, folder):
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')


def full_disk(monkeypatch, folder):
    class Full:
        def save(self, path, external_data):
            Path(path).write_bytes(b'half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph_cache, 'onnx_program', lambda program: Full())


@pytest.mark.parametrize(('harm', 'says'), [
    (no_folder, 'Not a directory'), (no_home, 'is not absolute'),
    (full_disk, 'No space left on device'),
])  # fmt: skip
def test_what_cannot_be_kept_costs_one_warning(harm, says, tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    harm(monkeypatch, tmp_path)
    program = object()
    assert graph_cache.keep(program, slot_of(tiny)) is program
    (record,) = caplog.records
    assert 'is not kept for the next start' in record.getMessage() and says in record.getMessage()
    assert '\n' not in record.getMessage() and not Path('relative').exists()
    assert [p.name for p in tmp_path.rglob('*') if p.is_file()] in ([], ['file'])


def test_without_a_cache_an_engine_runs_all_the_same(tiny, tmp_path, monkeypatch):
    pytest.importorskip('openvino')
    no_folder(monkeypatch, tmp_path)
    program = exported(tiny)
    monkeypatch.setattr(engines, 'exported', lambda model: program)
    runtime = RuntimeConfig(device='cpu', engine='openvino')
    assert isinstance(engine_of(tiny, runtime, 'fp32', CPU), Engine)


def test_only_the_newest_files_stay(tiny, slot, conversions):
    folder = slot.parent
    for age in range(MOST_KEPT):
        path = folder / (f'{age}.onnx' if age % 2 else f'.{age}.onnx.123')
        path.write_bytes(b'')
        os.utime(path, (1000 - age, 1000 - age))
    slot.unlink()
    assert answers(tiny)
    names = {path.name for path in folder.iterdir()}
    assert len(names) == MOST_KEPT and slot.name in names and f'{MOST_KEPT - 1}.onnx' not in names
