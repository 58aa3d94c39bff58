"""What a training run leaves for people to look at: curves for TensorBoard, a picture."""

from collections.abc import Mapping
import logging
from pathlib import Path

import numpy as np
from vlm_depth_ros.files.images import save_png
from vlm_depth_ros.tools.training_state import beside

log = logging.getLogger(__name__)


class TrainingLog:
    """Curves and pictures of one stage; a resumed one goes on where its state was written.

    ``OUT.tensorboard/<stage>`` and ``OUT.png``, the latest picture.

    Args:
        out: The weights file that is being made.
        stage: What to call the curves.
        first_step: Where they begin; later points of an earlier run are hidden.
    """

    def __init__(self, out: Path, stage: str, first_step: int):
        self._picture = beside(out, '.png')
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info('No curves: TensorBoard is not installed (pip install tensorboard).')
            return
        folder = beside(out, '.tensorboard') / stage.replace('/', '_')
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each named curve."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, rgb: np.ndarray, step: int) -> None:
        """Replace the picture by (H, W, 3) `rgb`; TensorBoard keeps all of them."""
        save_png(self._picture, rgb)
        if self._writer:
            self._writer.add_image('selection', rgb, step, dataformats='HWC')
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._writer.close()
