"""The factor that turns predicted depth into metres, estimated while the robot drives.

A measurement says what one frame's depth has to be multiplied by (`scale_ground`,
`scale_ranges`); this module decides how far to believe it. The state is a Kalman filter of one
number, ln(factor), as a random walk (Kalman 1960); what is applied follows it at a bounded rate.
A measurement counts once, however many frames come before the next (`NOTHING_NEW`). While they are
refused or missing the factor stands still; its uncertainty grows between any two.
"""

from collections import deque
from dataclasses import dataclass
import logging
import math
from statistics import median
from typing import ClassVar, TypeVar

from vlm_depth_ros.core.config import require, require_within

T = TypeVar('T')

log = logging.getLogger(__name__)

SOURCES = ('off', 'fixed', 'ground', 'ranges')
WINDOW = 5
"""Measurements that are compared with each other; their median is what counts."""
AGREEING = 3
"""So many of them have to agree before the first is believed, and ever after."""
AGREEMENT = 0.15
"""Agreeing is no farther from the median than this, in ln(factor)."""
GATE_SIGMAS = 3.0
"""A measurement farther from the estimate than this is another plane, or a bad scan."""

NOTHING_NEW = 'no new range has come'
"""`Measurement.reason` of a frame between two messages of a sensor slower than the camera: the one
before counted already, and there is nothing to refuse."""
STANDS_STILL = (
    'the stamp of the images stands still at {:.3f} s, and the scale moves with their time; let '
    'the camera driver stamp them'
)
"""Reason of a frame as old as the two before it; drivers that stamp nothing send 0."""

SENSIBLE_M = (1e-3, 1e3)
"""Depths and ranges outside these bounds are no measurement, and their squares overflow."""


@dataclass(frozen=True)
class ScaleOptions:
    """Where the scale comes from, and how far and how fast it may move."""

    source: str = 'off'
    """``off``: 1, nothing computed. ``fixed``: `fixed_factor`. ``ground``: the known height of
    the camera. ``ranges``: a scan, a cloud or a range sensor."""
    fixed_factor: float = 1.0
    """What depth is multiplied by with ``fixed``."""
    min_factor: float = 0.5
    """A measurement below is refused, so the factor never gets there."""
    max_factor: float = 2.0
    """Likewise above."""
    max_change_per_s: float = 0.2
    """The applied factor grows by no more than this share in a second, or shrinks back by it."""
    noise: float = 0.05
    """Least standard deviation of ln(factor) of what the recent measurements agree on: the frames
    of one place have errors in common, which no fit can see."""
    drift_per_sqrt_s: float = 0.01
    """How far the true ln(factor) wanders in a second (standard deviation): another room, another
    light. More follows faster, and believes a wrong source sooner."""
    lost_after_s: float = 2.0
    """Without a trusted measurement for so long the scale counts as frozen."""

    BOUNDS: ClassVar = {
        'fixed_factor': (0.01, 100.0),
        'min_factor': (0.01, 0.99),
        'max_factor': (1.01, 100.0),
        'max_change_per_s': (0.001, 10.0),
        'noise': (0.001, 1.0),
        'drift_per_sqrt_s': (0.0001, 1.0),
        'lost_after_s': (0.1, 60.0),
    }

    def __post_init__(self):
        """Check every bound."""
        require(
            self.source in SOURCES,
            f'source = {self.source!r}: expected one of {", ".join(SOURCES)}.',
        )
        require_within(self, self.BOUNDS)


@dataclass(frozen=True)
class Measurement:
    """What one frame says about the scale of its depth."""

    factor: float = math.nan
    """Predicted depth times this is metric; NaN where there is none."""
    spread: float = math.nan
    """Standard deviation of ln(factor), as the fit sees it."""
    support: float = 0.0
    """Share of what was looked at that agrees with it."""
    reason: str = ''
    """Why there is none; empty for a measurement."""


@dataclass(frozen=True)
class ScaleState:
    """The scale after a frame, for whoever applies or reports it."""

    factor: float
    """Multiply the predicted depth by this."""
    uncertainty: float
    """Standard deviation of ln(factor), about the relative error; what is still to be caught up is
    in it. NaN for ``off`` and ``fixed``, which nobody measures."""
    status: str
    """``off``, ``fixed``, ``waiting`` (nothing trusted yet), ``tracking`` or ``frozen``."""
    reason: str = ''
    """Why the last measurement was not trusted, or is not there; empty if it was."""
    age_s: float = math.nan
    """Time since the last trusted measurement; NaN before the first."""
    accepted: int = 0
    """Measurements that were trusted, each once."""
    refused: int = 0
    """Those that were not, and frames without any; not those that wait for the next."""


class ScaleEstimate:
    """The scale of one camera, from frame to frame.

    Args:
        options: Source, bounds and speed.
        name: What to call the camera in a warning.
    """

    def __init__(self, options: ScaleOptions, name: str = ''):
        self.options, self._name = options, name
        self.reset()

    def reset(self) -> None:
        """Forget every measurement: the factor is 1 again, or the fixed one."""
        fixed = self.options.source == 'fixed'
        self._applied = math.log(self.options.fixed_factor) if fixed else 0.0
        self._estimate = 0.0
        self._variance = self._prior_variance
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._time_s = self._measured_s = self._trusted_s = None
        self._repeats = 0
        status = self.options.source if not self.wants_measurements else 'waiting'
        factor = float(self.options.fixed_factor) if fixed else 1.0
        uncertainty = math.sqrt(self._variance) if self.wants_measurements else math.nan
        self.state = ScaleState(factor, uncertainty, status)

    def change(self, options: ScaleOptions) -> None:
        """Go on with other options; another source or fixed factor starts anew."""
        before, self.options = self.options, options
        if (options.source, options.fixed_factor) != (before.source, before.fixed_factor):
            self.reset()

    @property
    def wants_measurements(self) -> bool:
        """Whether a source has to be asked at all; False for ``off`` and ``fixed``."""
        return self.options.source not in ('off', 'fixed')

    def apply(self, depth: T) -> T:
        """Depth (an array or a tensor) in metres; the very same object where the factor is 1."""
        return depth if self.state.factor == 1.0 else depth * self.state.factor

    def update(self, found: Measurement, time_s: float) -> ScaleState:
        """Take in what the source says of one frame, or that it says nothing.

        Args:
            found: Measured on depth *before* the factor was applied to it; one with a `reason`
                alone where the source is silent.
            time_s: Stamp of the frame. A jump back (a bag that starts again) forgets the recent
                measurements and keeps the factor.

        Returns:
            The new state, which is `state` too.
        """
        if not self.wants_measurements:
            return self.state
        self._repeats = self._repeats + 1 if time_s == self._time_s else 0
        elapsed_s = self._advance(time_s)
        # A frame may be worked on twice: alone after a batch in which another failed.
        if self._repeats == 1 or (found.reason == NOTHING_NEW and not self._repeats):
            self._wait(elapsed_s)
            return self.state
        reason = STANDS_STILL.format(time_s) if self._repeats else found.reason
        reason = reason or self._refusal(found, time_s)
        if not reason:
            self._trust(found)
            self._follow(elapsed_s)
            self._trusted_s = time_s
        self.state = self._state(reason, accepted=not reason, refused=bool(reason))
        return self.state

    @property
    def _prior_variance(self) -> float:
        """Before any measurement, and the most that is ever unknown: the bounds are one sigma."""
        return (math.log(self.options.max_factor / self.options.min_factor) / 2) ** 2

    def _advance(self, time_s: float) -> float:
        """Let time pass; the seconds since the last frame."""
        elapsed_s = 0.0 if self._time_s is None else time_s - self._time_s
        if elapsed_s < 0:
            elapsed_s, self._measured_s = 0.0, None
            self._recent.clear()
            if self._trusted_s is not None:
                self._trusted_s = time_s
        self._time_s = time_s
        # What is older than this is asked for anew, and so the factor does not leap over a gap.
        if self._measured_s is not None and time_s - self._measured_s > self.options.lost_after_s:
            self._recent.clear()
        walked = self.options.drift_per_sqrt_s**2 * elapsed_s
        self._variance = min(self._variance + walked, self._prior_variance)
        return elapsed_s

    def _refusal(self, found: Measurement, time_s: float) -> str:
        """Why this measurement is not to be believed; empty if it is."""
        low, high = self.options.min_factor, self.options.max_factor
        if not low <= found.factor <= high:
            return f'measured a factor of {found.factor:.3g}, outside {low:g} to {high:g}'
        self._measured_s = time_s
        self._recent.append(math.log(found.factor))
        middle = self._consensus()
        if middle is None:
            return f'fewer than {AGREEING} of the last {WINDOW} measurements agree'
        if abs(self._recent[-1] - middle) > AGREEMENT:
            return f'measured a factor of {found.factor:.3g}, unlike the measurements before it'
        gate = GATE_SIGMAS * math.sqrt(self._variance + self._noise(found) ** 2)
        if abs(middle - self._estimate) > gate:
            return (
                f'measured a factor of {math.exp(middle):.3g}, too far from the '
                f'{math.exp(self._estimate):.3g} that earlier frames agree on'
            )
        return ''

    def _consensus(self) -> float | None:
        """Median of the recent measurements that agree; None where too few do."""
        middle = median(self._recent)
        agreeing = [value for value in self._recent if abs(value - middle) <= AGREEMENT]
        return median(agreeing) if len(agreeing) >= AGREEING else None

    def _noise(self, found: Measurement) -> float:
        return max(self.options.noise, found.spread)

    def _wait(self, elapsed_s: float) -> None:
        """Go on as the measurement before said, as long as it is not too old."""
        before = self.state
        if before.status == 'tracking' and not before.reason:
            self._follow(elapsed_s)
        self.state = self._state(before.reason)

    def _trust(self, found: Measurement) -> None:
        gain = self._variance / (self._variance + self._noise(found) ** 2)
        self._estimate += gain * (self._consensus() - self._estimate)
        self._variance *= 1 - gain

    def _follow(self, elapsed_s: float) -> None:
        """Move what is applied towards the estimate, no faster than stated."""
        most = math.log1p(self.options.max_change_per_s) * elapsed_s
        self._applied += min(max(self._estimate - self._applied, -most), most)

    def _state(
        self, reason: str, accepted: bool = False, refused: bool = False
    ) -> ScaleState:
        before = self.state
        age_s = math.nan if self._trusted_s is None else self._time_s - self._trusted_s
        if self._trusted_s is None:
            status = 'waiting'
        else:
            status = 'frozen' if age_s > self.options.lost_after_s else 'tracking'
        if status != 'tracking':
            reason = reason or NOTHING_NEW
        factor = math.exp(self._applied)
        if status == 'frozen' and before.status != 'frozen':
            log.warning('%s: the depth scale is frozen at %.3f: %s.', self._name, factor, reason)
        elif before.status == 'frozen' and status == 'tracking':
            log.info('%s: the depth scale is tracked again.', self._name)
        return ScaleState(
            factor=factor,
            uncertainty=math.hypot(math.sqrt(self._variance), self._estimate - self._applied),
            status=status,
            reason=reason,
            age_s=age_s,
            accepted=before.accepted + accepted,
            refused=before.refused + refused,
        )
