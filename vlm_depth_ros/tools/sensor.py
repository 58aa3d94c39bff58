"""What a camera does to the light that reaches it: lens, motion, exposure, noise, compression."""

from dataclasses import dataclass
import math

import cv2
import numpy as np


@dataclass(frozen=True)
class Sensor:
    """A camera's faults; lengths in pixels are for a picture 320 wide, and scale with it."""

    exposure: float = 0.42
    """Mean of the linear picture after exposure control."""
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    vignette: float = 0.0
    blur_px: float = 0.0
    """Deviation of the blur of the whole picture."""
    defocus_px: float = 0.0
    """Deviation of the blur one dioptre (1/m) from what is in focus."""
    focus_m: float = 2.0
    motion_px: float = 0.0
    """Length of the streak that a moving camera makes of a point."""
    motion_rad: float = 0.0
    sharpening: float = 0.0
    """Share of an unsharp mask, with its halos."""
    noise: float = 0.0
    """Deviation of the noise at middle grey, of full scale."""
    jpeg_quality: int = 0
    """Compression inside the camera, before the picture is kept; 0: none."""

    @classmethod
    def random(cls, rng) -> 'Sensor':
        """A plausible cheap camera."""
        warm = rng.normal(0, 0.1)
        odd = rng.random() < 0.1
        return cls(
            exposure=rng.choice([0.08, 0.6]) if odd else rng.uniform(0.13, 0.48),
            balance=(1 + warm, 1 + rng.normal(0, 0.03), 1 - warm),
            contrast=rng.uniform(0.85, 1.2),
            vignette=rng.uniform(0, 0.35),
            blur_px=rng.uniform(0, 0.9) if rng.random() < 0.5 else 0.0,
            defocus_px=rng.uniform(0.3, 1.5) if rng.random() < 0.25 else 0.0,
            focus_m=rng.uniform(1.0, 5.0),
            motion_px=rng.uniform(1.0, 5.0) if rng.random() < 0.25 else 0.0,
            motion_rad=rng.normal(0, 0.5),
            sharpening=rng.uniform(0.2, 1.0) if rng.random() < 0.4 else 0.0,
            noise=rng.uniform(0.0, 0.035),
            jpeg_quality=int(rng.integers(35, 90)) if rng.random() < 0.5 else 0,
        )

    def develop(self, linear: np.ndarray, rng=None, depth_m=None) -> np.ndarray:
        """Linear RGB (H, W, 3) to an sRGB picture (H, W, 3) uint8.

        Args:
            linear: Light on every pixel.
            rng: Source of noise; without it there is none.
            depth_m: Depth (H, W) for defocus; without it all is in focus.
        """
        h, w = linear.shape[:2]
        scale = w / 320
        level = max(float(np.minimum(linear, 4 * linear.mean()).mean()), 1e-6)
        picture = linear * (np.float32(self.exposure / level) * np.float32(self.balance))
        if self.vignette:
            y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
            picture *= (1 - np.float32(self.vignette / 2) * (x * x + y * y))[..., None]
        np.maximum(picture, 0, out=picture)
        if self.defocus_px and depth_m is not None:
            picture = self._defocus(picture, depth_m, scale)
        if self.motion_px:
            picture = _streak(picture, self.motion_px * scale, self.motion_rad)
        # A soft shoulder instead of a hard clip keeps windows and lamps from flat white.
        picture = picture / (1 + np.float32(0.25) * picture * picture) ** np.float32(0.5)
        picture = np.minimum(picture, 1) ** np.float32(1 / 2.2 * self.contrast)
        if self.blur_px:
            picture = cv2.GaussianBlur(picture, (0, 0), max(self.blur_px * scale, 0.3))
        if rng is not None and self.noise:
            picture += self._grain(rng, picture)
        if self.sharpening:
            smooth = cv2.GaussianBlur(picture, (0, 0), 1.2 * scale)
            picture += np.float32(self.sharpening) * (picture - smooth)
        picture = (np.clip(picture, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
        if self.jpeg_quality:
            options = (cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality)
            _, code = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
            picture = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return picture

    def _defocus(self, picture, depth_m, scale) -> np.ndarray:
        """A thin lens: the blur grows with the distance in dioptres from what is in focus."""
        near = cv2.blur(1 / depth_m, (5, 5))
        wanted = np.abs(near - np.float32(1 / self.focus_m)) * np.float32(self.defocus_px)
        out = picture
        # Two stops of blur, mixed: sharp to 1 pixel, 1 to 3.
        for low, high in ((0.0, 1.0), (1.0, 3.0)):
            share = np.clip((wanted - np.float32(low)) / np.float32(high - low), 0, 1)
            if share.any():
                soft = cv2.GaussianBlur(picture, (0, 0), high * scale)
                out = out + share[..., None] * (soft - out)
        return out

    def _grain(self, rng, picture) -> np.ndarray:
        """Noise of single pixels, and blotches of colour such as demosaicing leaves."""
        h, w = picture.shape[:2]
        fine = rng.standard_normal(picture.shape, np.float32)
        coarse = rng.standard_normal((h // 3 + 1, w // 3 + 1, 3), np.float32)
        fine = np.float32(0.8) * fine + np.float32(0.7) * cv2.resize(coarse, (w, h))
        return fine * np.float32(self.noise) * (np.float32(1.2) - np.float32(0.7) * picture)


def _streak(picture, length_px, angle_rad) -> np.ndarray:
    """The picture of a camera that moved while the shutter was open."""
    reach = math.ceil(length_px / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    along = np.linspace(-length_px / 2, length_px / 2, 8 * reach + 1)
    rows = np.rint(along * math.sin(angle_rad)).astype(int) + reach
    columns = np.rint(along * math.cos(angle_rad)).astype(int) + reach
    np.add.at(kernel, (rows, columns), 1)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
