"""A picture with measured depth, its camera and its scene: what every kind of data set gives."""

from dataclasses import dataclass, replace

from vlm_depth_ros.core.errors import InputError
from vlm_depth_ros.core.geometry import CameraIntrinsics
from vlm_depth_ros.files.pairs import Pair
from vlm_depth_ros.files.source import SourceFrame


@dataclass(frozen=True)
class Sample(Pair):
    """A pair that also knows its scene and the size of the images that its camera is for.

    Opening a set reads its list only: a missing or damaged file raises when it is loaded.
    """

    name: str = ''
    """Unique in its set: the path of the image below the set."""
    scene: str = ''
    """Room, drive or recording; samples of one scene look alike."""
    camera_hw: tuple[int, int] | None = None
    """Image size that the intrinsics are for, height first; None where the set does not say."""

    def intrinsics(self, image_hw: tuple[int, int]) -> CameraIntrinsics:
        """Give the camera of the stored image.

        Raises:
            InputError: If the set's camera is for images of another size.
        """
        if self.camera_hw not in (None, tuple(image_hw)):
            raise InputError(
                f'{self.rgb}: is {image_hw[1]} x {image_hw[0]} pixels, but its camera is for '
                f'{self.camera_hw[1]} x {self.camera_hw[0]}. Use the images as published, or '
                'write their own camera into a pairs.csv.'
            )
        return super().intrinsics(image_hw)

    def load(self) -> SourceFrame:
        """Read image and depth.

        Raises:
            InputError: If one is missing or damaged, they differ in size, or the camera is for
                another size.
        """
        return replace(super().load(), name=self.name)
