"""One door to everything that holds camera frames: `open_source` looks at a path and chooses."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
import logging
import os
from pathlib import Path

import numpy as np
from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics

ACCEPTED = (
    'a folder with pairs.csv, a folder of images, an image (jpg, png, bmp, tif, webp), '
    'a video, or a ROS 2 bag (.mcap, .db3 or its folder)'
)

BAG_SUFFIXES = ('.mcap', '.db3')

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One picture with what is known about it."""

    rgb: np.ndarray
    """(H, W, 3) uint8, RGB."""
    stamp_s: float | None = None
    """Time of the picture in seconds; None where the source has no time."""
    intrinsics: CameraIntrinsics | None = None
    """Pinhole camera of `rgb` as it is."""
    depth_m: np.ndarray | None = None
    """(H, W) float32 metres along the optical axis; NaN where nothing was measured."""
    name: str = ''
    """File name, or topic and index: for messages and output names."""


class EndedEarly(InputError):
    """The file ends before the frame that its own header or index promised."""


class Source(ABC):
    """A sized sequence of frames, read when asked for.

    Iterate as often as you like; files are closed at the end of each pass, by `close` and by
    ``with``. Indexing in ascending order is as cheap as iterating and goes on after a bad frame.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Count the frames, as the container claims where counting would mean reading all."""

    @abstractmethod
    def _frame(self, index: int) -> SourceFrame:
        """Read frame `index`, 0 <= index < len; `EndedEarly` where there is none after all."""

    def __getitem__(self, index: int) -> SourceFrame:
        """Read one frame; negative indices count from the end.

        Raises:
            InputError: If this frame is damaged, or missing (`EndedEarly`) as the file was cut
                off; others can still be read.
            IndexError: If there is no such frame.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f'frame {index} of {count}')
        return self._frame(index % count)

    def __iter__(self) -> Iterator[SourceFrame]:
        """Read all frames in order; a file that ends early just ends.

        Raises:
            InputError: At a damaged frame; index the source to go past it.
        """
        try:
            for index in range(len(self)):
                try:
                    frame = self._frame(index)
                except EndedEarly as err:
                    _log.warning('%s', err)
                    return
                yield frame
        finally:
            self.close()

    def close(self) -> None:  # noqa: B027 - most sources keep nothing open
        """Close what is open; the source can still be used and opens it again."""

    def __enter__(self) -> 'Source':
        """Close at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def open_source(
    path: str | Path, *, topic: str | None = None, depth_topic: str | None = None
) -> Source:
    """Open what lies at `path`.

    Args:
        path: Folder with pairs.csv, folder of images, image, video file, or bag.
        topic: Image topic of a bag; None takes the first that is a picture.
        depth_topic: Depth topic of a bag; None looks for one that fits, '' wants none.

    Raises:
        InputError: If there is nothing usable; it says what was found and what is accepted.
        DependencyError: If it is a bag and rosbags is not installed.
    """
    # Imported where needed: these modules import this one, and pictures need no bag library.
    from vlm_depth_ros.files import images, pairs, video

    path = Path(path)
    if not path.exists():
        raise InputError(f'{path}: does not exist. Accepted: {ACCEPTED}.')
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f'{path}: may not be read; change its permissions.')
    bag = _bag_at(path)
    if bag is not None:
        from vlm_depth_ros.files.bag_source import BagSource

        return BagSource(bag, topic=topic, depth_topic=depth_topic)
    if topic is not None or depth_topic is not None:
        raise InputError(f'{path}: a topic was named, but this is not a ROS 2 bag.')
    if path.is_dir():
        if (path / pairs.PAIRS_FILE).is_file():
            return pairs.PairsSource(path)
        pictures = images.list_images(path)
        if pictures:
            return images.ImagesSource(pictures)
        raise InputError(f'{path}: holds {_contents(path)}. Accepted: {ACCEPTED}.')
    suffix = path.suffix.lower()
    if path.name == pairs.PAIRS_FILE:
        return pairs.PairsSource(path.parent)
    if suffix in images.IMAGE_SUFFIXES:
        return images.ImagesSource([path])
    if suffix in video.VIDEO_SUFFIXES:
        return video.VideoSource(path)
    if suffix == '.bag':
        raise InputError(
            f'{path}: is a ROS 1 bag; convert it: rosbags-convert --src {path.name} --dst NEW.'
        )
    kind = f'of unknown kind {suffix!r}' if suffix else 'without a suffix'
    raise InputError(f'{path}: is {kind}. Accepted: {ACCEPTED}.')


def _bag_at(path: Path) -> Path | None:
    """The bag that `path` names: a file, a folder with metadata, or one whose recorder died."""
    if not path.is_dir():
        return path if path.suffix in BAG_SUFFIXES else None
    if (path / 'metadata.yaml').is_file():
        return path
    inside = [p for p in path.iterdir() if p.suffix in BAG_SUFFIXES and p.is_file()]
    return inside[0] if len(inside) == 1 else None


def _contents(folder: Path) -> str:
    """What a folder holds, in a few words."""
    entries = [e for e in folder.iterdir() if not e.name.startswith('.')]
    kinds = Counter('folders' if e.is_dir() else e.suffix.lower() or 'files' for e in entries)
    words = [f'{count} {kind}' for kind, count in kinds.most_common(4)]
    return 'nothing' if not words else ', '.join(words) + ' and no pictures of its own'
