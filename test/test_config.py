"""The dataclasses that describe a network: what they refuse, and how they say it."""

from dataclasses import dataclass, FrozenInstanceError, replace
import json
import math

import pytest
from vlm_depth_ros.core.config import from_mapping, ModelConfig, RuntimeConfig, TrainingCamera
from vlm_depth_ros.core.errors import ConfigError
from vlm_depth_ros.core.options import OutputOptions

MODEL = ModelConfig(
    tower='ViT-B-16-quickgelu',
    head={'name': 'space_clip', 'structural': 'late'},
    pretrained='openai',
    input_hw=(224, 288),
    depth_range_m=(0.1, 80.0),
    camera=TrainingCamera(0.9, 1.2),
)


@dataclass(frozen=True)
class Nested:
    """Something with a nested value."""

    pair: tuple


@pytest.mark.parametrize('config', [MODEL, replace(MODEL, camera=None, pretrained=None)])
def test_model_config_survives_json(config):
    """It travels inside the weights file as JSON, where a tuple becomes a list."""
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(('options', 'message'), [
    ({'devise': 'cpu'}, "file: 'devise' is not an option. Did you mean 'device'?"),
    ({'zzz': 1}, "file: 'zzz' is not an option. Options: device, precision, compile"),
    ({3: 1}, 'file: 3 is not an option. Options'),
    (['device'], 'file: expected a mapping of options, got list.'),
])  # fmt: skip
def test_mapping_with_unknown_keys_is_refused_with_the_nearest(options, message):
    with pytest.raises(ConfigError) as caught:
        from_mapping(RuntimeConfig, options, 'file')
    assert message in str(caught.value)


def test_mapping_without_a_required_key_names_it():
    with pytest.raises(ConfigError, match="model: .*'tower'.* Options: tower, head"):
        ModelConfig.from_dict({'input_hw': [224, 224]})


def test_lists_become_tuples_at_any_depth():
    """YAML and JSON have no tuples, and a frozen dataclass must not hold a list."""
    assert from_mapping(Nested, {'pair': [[1, 2], [3]]}, 'x').pair == ((1, 2), (3,))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'depth_range_m': (1.0, 0.5)}, 'expected 0 < minimum < maximum'),
    ({'depth_range_m': (0.0, 10.0)}, 'expected 0 < minimum < maximum'),
    ({'depth_range_m': (0.1, math.nan)}, 'expected 0 < minimum < maximum'),
    ({'depth_range_m': (0.1, math.inf)}, 'expected 0 < minimum < maximum'),
    ({'depth_range_m': (1.0, 2.0, 3.0)}, 'two numbers of metres'),
    ({'input_hw': (8, 224)}, 'expected two integers of at least 16'),
    ({'input_hw': (224.0, 224.0)}, 'expected two integers'),
    ({'input_hw': (224,)}, 'expected two integers'),
    ({'tower': 5}, 'tower = 5: expected an architecture name'),
    ({'head': 'space_clip'}, "head = 'space_clip': expected a mapping with 'name'"),
    ({'head': {'widths': (8, 8, 8, 8)}}, "expected a mapping with 'name'"),
])  # fmt: skip
def test_model_config_refuses_what_no_network_has(changes, message):
    with pytest.raises(ConfigError) as caught:
        replace(MODEL, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize('options', [
    5, 'abc', ['tower'], {'tower': 'x', 'input_hw': 5}, {'tower': 'x', 'camera': 5},
    {'tower': 'x', 'camera': {'fx_per_width': 1.0}}, {'tower': 'x', 'depth_range_m': ['a', 'b']},
])  # fmt: skip
def test_model_config_of_a_broken_record_is_a_config_error(options):
    """A foreign or damaged weights file must fail with a sentence, not with a TypeError."""
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(options)


@pytest.mark.parametrize('value', [0, -1.0, math.nan, math.inf, '1', None])
def test_training_camera_refuses_impossible_focal_lengths(value):
    with pytest.raises(ConfigError, match='camera.fy_per_height = .*: expected a positive number'):
        TrainingCamera(1.0, value)


def test_training_camera_has_one_focal_length():
    assert TrainingCamera(0.9, 1.6).focal == pytest.approx(1.2)


@pytest.mark.parametrize('device', ['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:12'])
def test_runtime_accepts_devices(device):
    assert RuntimeConfig(device=device).device == device


@pytest.mark.parametrize(('changes', 'message'), [
    ({'device': 'gpu'}, "device = 'gpu': expected auto, cpu, cuda or cuda:N."),
    ({'device': 'cuda:x'}, "device = 'cuda:x'"),
    ({'device': 'auto:1'}, "device = 'auto:1'"),
    ({'device': None}, 'device = None'),
    ({'precision': 'int8'}, "precision = 'int8': expected one of ('auto', 'fp32', "),
    ({'compile': True}, "compile = True: expected one of ('auto', 'off', 'on')."),
])  # fmt: skip
def test_runtime_refuses_unknown_choices(changes, message):
    with pytest.raises(ConfigError) as caught:
        RuntimeConfig(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'depth_divisor': 0}, 'depth_divisor = 0: expected an integer from 1 to 8.'),
    ({'depth_divisor': 1.5}, 'depth_divisor = 1.5: expected an integer'),
    ({'cloud_stride': 17}, 'cloud_stride = 17: expected an integer from 1 to 16.'),
    ({'min_depth_m': -0.1}, 'min_depth_m = -0.1: expected a finite number of metres'),
    ({'max_depth_m': math.nan}, 'max_depth_m = nan: expected a finite number of metres'),
    ({'min_depth_m': 2.0, 'max_depth_m': 2.0}, 'must be below max_depth_m = 2.0'),
])  # fmt: skip
def test_output_options_refuse_values_out_of_bounds(changes, message):
    with pytest.raises(ConfigError) as caught:
        OutputOptions(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize('config', [MODEL, RuntimeConfig(), OutputOptions(), MODEL.camera])
def test_configs_are_frozen(config):
    """Each value stands in one place and stays what it was checked as."""
    with pytest.raises(FrozenInstanceError):
        setattr(config, next(iter(vars(config))), None)
