"""The model that answers, and its successor, loaded and warmed up beside it."""

from collections.abc import Callable
import sys
import threading
import time
from typing import TYPE_CHECKING

from vlm_depth_ros.core.config import RuntimeConfig
from vlm_depth_ros.core.errors import ConfigError, DependencyError
from vlm_depth_ros.ros.engine_search import EngineSearch
from vlm_depth_ros.ros.params import NodeParams
from vlm_depth_ros.ros.process import one_line

if TYPE_CHECKING:
    from vlm_depth_ros.core.estimator import DepthEstimator

WARM_UP_HW = (480, 640)
"""Size of the image that the network is warmed up with; other sizes work, the first one slower."""


def load_estimator(weights: str, runtime: RuntimeConfig) -> 'DepthEstimator':
    """Load the network; with the engine ``auto``, in the form that is fastest at once.

    Raises:
        DependencyError: If PyTorch or open_clip is not installed for this interpreter.
        WeightsError: If the weights are missing, damaged or foreign.
    """
    try:
        from vlm_depth_ros.core.estimator import DepthEstimator
        from vlm_depth_ros.core.lean_eager import run_lean
    except ImportError as err:
        raise DependencyError(
            f'{err}. The network needs torch and open_clip_torch in {sys.executable}: install '
            'them there, or start the node with an interpreter that has them (launch argument '
            "'python')."
        ) from err
    estimator = DepthEstimator.from_weights(weights, runtime)
    if runtime.engine == 'auto':
        run_lean(estimator)
    return estimator


def check_file(weights: str) -> None:
    """Refuse what the header of a weights file gives away; takes milliseconds.

    Raises:
        WeightsError: If there is no such file, it is cut off, or not one of ours.
    """
    from vlm_depth_ros.core.exported import read_metadata, read_record, SUFFIX  # Needs torch.
    from vlm_depth_ros.core.model import find_weights, read_card

    path = find_weights(weights)
    if path.suffix == SUFFIX:
        read_record(read_metadata(path), path)
    else:
        read_card(path)


def check_range(estimator: 'DepthEstimator', params: NodeParams) -> None:
    """Refuse limits that leave nothing of the model's own range.

    Raises:
        ConfigError: If so.
    """
    low_m, high_m = estimator.range_m(params.output_options)
    if low_m >= high_m:
        own = ' to '.join(f'{limit:g}' for limit in estimator.config.depth_range_m)
        raise ConfigError(
            f'min_depth_m = {params.min_depth_m:g}, max_depth_m = {params.max_depth_m:g}: '
            f'nothing is left of the {own} m that {estimator.name} was trained for.'
        )


class Loading:
    """One attempt, in a thread of its own that knows neither the node nor the middleware.

    A thread cannot be ended from outside: `abandon` lets it end by itself at the next step, and
    whatever it has made is dropped.
    """

    def __init__(
        self,
        weights: str,
        runtime: RuntimeConfig,
        factory: Callable[[str, RuntimeConfig], 'DepthEstimator'],
    ):
        """Start at once; arguments as those of `load_estimator`, which is one `factory`."""
        self.weights = weights
        self.took_s = 0.0
        """How long it took, once done."""
        self.estimator: DepthEstimator | None = None
        """The new model, which ran already; None if it failed."""
        self.error = ''
        """What went wrong. Its traceback would hold on to the memory of half a model."""
        from vlm_depth_ros.core.devices import num_threads  # Needs torch.

        self._abandoned = False
        self._thread = threading.Thread(
            target=self._run,
            args=(runtime, factory, num_threads()),
            name='model_loader',
            daemon=True,
        )
        self._thread.start()

    def is_done(self) -> bool:
        """Whether it came to an end, good or bad."""
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Let the thread end without a result."""
        self._abandoned = True

    def _run(self, runtime: RuntimeConfig, factory: Callable, num_threads: int) -> None:
        from vlm_depth_ros.core.devices import use_threads

        start_s = time.monotonic()
        try:
            use_threads(num_threads)  # A new thread has as many as the worker chose last.
            estimator = factory(self.weights, runtime)
            if self._abandoned:
                return
            estimator.warm_up(WARM_UP_HW)
        except Exception as err:
            self.error = one_line(err)
        else:
            self.estimator = estimator
        finally:
            self.took_s = time.monotonic() - start_s


class RunningModel:
    """The network that answers, what it was loaded from, and the attempt to replace it.

    Used in the executor's thread; the worker only reads `estimator`.
    """

    def __init__(
        self, params: NodeParams, factory: Callable[[str, RuntimeConfig], 'DepthEstimator']
    ):
        """Load and warm up what `params` names, in this thread.

        Raises:
            WeightsError: If the weights are missing, damaged or foreign.
            ConfigError: If the device is absent, or the limits leave nothing of the model's range.
        """
        start_s = time.monotonic()
        self.estimator = factory(params.weights, params.runtime())
        check_range(self.estimator, params)
        self.estimator.warm_up(WARM_UP_HW)
        self.weights = params.weights
        """Shipped name or path that `estimator` was loaded from."""
        self.took_s = time.monotonic() - start_s
        """How long it took to load."""
        self.trouble = ''
        """Why the last attempt failed; empty from the next one on."""
        self._factory = factory
        self._loading: Loading | None = None
        self._runtime = params.runtime()
        self._start()

    def _start(self) -> None:
        """Let the worker find out how the network runs best."""
        self.estimator.ways.try_thread_counts()
        self._search = EngineSearch(self.weights, self.estimator, self._runtime)

    def look_for_engine(self, num_published: int) -> str:
        """Go on to look for a faster engine; see `EngineSearch.look`."""
        return self._search.look(num_published)

    def begin(self, weights: str, runtime: RuntimeConfig) -> None:
        """Start to load a successor.

        Raises:
            ConfigError: If one is being loaded already.
            WeightsError: If the file cannot be right; see `check_file`.
        """
        if self._loading is not None:
            raise ConfigError(
                f"weights {self._loading.weights!r} are still being loaded: one at a time. Ask "
                "again once 'weights being loaded' on /diagnostics is empty."
            )
        check_file(weights)
        self.trouble = ''
        self._loading = Loading(weights, runtime, self._factory)
        self._runtime = runtime

    def is_decided(self) -> bool:
        """Whether an attempt has come to its end, good or bad, and was not looked at yet."""
        return self._loading is not None and self._loading.is_done()

    def take_successor(self, params: NodeParams) -> bool:
        """Let the successor answer from the next frame on; False if it failed: see `trouble`."""
        loading, self._loading = self._loading, None
        error = loading.error
        if not error:
            try:
                check_range(loading.estimator, params)
            except ConfigError as err:
                error = one_line(err)
        if error:
            self.trouble = f'weights {loading.weights!r} not loaded: {error}'
            return False
        self.estimator, self.weights = loading.estimator, loading.weights
        self.took_s = loading.took_s
        self._search.abandon()
        self._start()
        return True

    def abandon(self) -> None:
        """Drop whatever is under way."""
        self._search.abandon()
        if self._loading is not None:
            self._loading.abandon()
            self._loading = None

    def described(self) -> dict[str, str]:
        """For diagnostics."""
        from vlm_depth_ros.core.devices import memory_mb  # Needs torch.

        loss = self.estimator.guard.loss
        return {
            'weights': self.weights,
            'weights SHA-256': self.estimator.weights_sha256,
            'engine': str(self.estimator.ways.at_hand),
            'device trouble': loss,
            # A lost device is not asked again: its errors would end the node.
            'device memory (MB)': '' if loss else f'{memory_mb(self.estimator.device):.0f}',
            'weights being loaded': self._loading.weights if self._loading else '',
            'last loading': self.trouble,
        }
