"""The errors raised on purpose: each says what came, what was expected and what to do."""


class VlmDepthError(Exception):
    """Anything that a user can put right; caught once, by the command line or by the node."""


class ConfigError(VlmDepthError):
    """An option has an unknown name or a value outside its bounds."""


class WeightsError(VlmDepthError):
    """A weights file is missing, damaged, foreign, or belongs to another tower or head."""


class InputError(VlmDepthError):
    """An image, a camera or a file does not have the promised content."""


class DependencyError(VlmDepthError):
    """An optional library that this action needs is not installed."""


class DeviceMemoryError(VlmDepthError):
    """The device has no memory left for this call; a smaller one may work."""


class DeviceLostError(VlmDepthError):
    """The device works no more for this process, whatever is asked of it."""


def reason_of(err: Exception) -> str:
    """First line of what a library says, or the name of its error where it says nothing.

    For the brackets of a message of ours: without the full stop at its end.
    """
    return (str(err).strip() or type(err).__name__).partition('\n')[0].rstrip('.: ')
