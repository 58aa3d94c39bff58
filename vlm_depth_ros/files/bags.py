"""ROS 2 bags without ROS: one .mcap file out, .mcap, .db3 and rosbag2 folders in.

The only module that imports rosbags. Messages go in as serialised CDR, so a recorder passes on
what it received without decoding it.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

from vlm_depth_ros.core.errors import DependencyError, InputError, reason_of
from vlm_depth_ros.files.atomic import atomic_file
from vlm_depth_ros.files.bag_arrays import cloud_xyzrgb, image_array

try:
    from rosbags.interfaces import (
        Connection,
        MessageDefinitionFormat,
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
    from rosbags.typesys import get_types_from_msg, get_typestore, Stores
    from rosbags.typesys.store import Typestore
except ImportError as err:
    raise DependencyError(
        f'bags need the library rosbags ({err}). Install it: pip install rosbags'
    ) from err

if TYPE_CHECKING:  # brings torch, which reading a bag does not need
    from vlm_depth_ros.files.bag_messages import Packed

__all__ = [
    'BagReader',
    'BagTopic',
    'BagWriter',
    'cloud_xyzrgb',
    'image_array',
    'read_messages',
]

DISTROS = {
    'humble': Stores.ROS2_HUMBLE,
    'jazzy': Stores.ROS2_JAZZY,
    'kilted': Stores.ROS2_KILTED,
}
_CDR_HEADERS = (b'\x00\x00', b'\x00\x01')  # plain CDR, big and little endian
_FOREVER = QosTime(9223372036, 854775807)


class BagWriter:
    """Writes one .mcap file, which appears or replaces an older one when the ``with`` block ends.

    After an exception in the block nothing is kept and an older file stays as it was.
    """

    def __init__(self, path: str | Path, *, distro: str = 'kilted', compress: bool = False):
        """Choose the file.

        Args:
            path: A name that ends in .mcap.
            distro: The distribution whose message definitions are stored.
            compress: Zstandard on every chunk: smaller, and a job for the CPU while recording.

        Raises:
            InputError: If the name does not end in .mcap or the distribution is unknown.
        """
        self.path = Path(path)
        self.message_count = 0
        if self.path.suffix != '.mcap':
            raise InputError(f'{path}: expected a file name that ends in .mcap.')
        if distro not in DISTROS:
            raise InputError(f'distro {distro!r}: expected one of {", ".join(DISTROS)}.')
        self._types = get_typestore(DISTROS[distro])
        self._connections: dict[tuple[str, str], Connection] = {}
        self._is_compressed = compress
        self._target = atomic_file(self.path)
        self._temporary = Path()
        self._writer: Writer | None = None

    def __enter__(self) -> 'BagWriter':
        """Open a temporary bag beside the target.

        Raises:
            InputError: If the place cannot be written.
        """
        self._temporary = self._target.__enter__()
        # rosbags makes a folder and names the file in it after the folder: same stem, same name.
        folder = self._temporary.with_suffix('')
        # Version 8 stores QoS in the form that Humble reads, and every later release too.
        self._writer = Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP)
        if self._is_compressed:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._guarded(self._writer.open)
        return self

    def add(
        self,
        topic: str,
        msgtype: str,
        cdr: bytes | memoryview,
        stamp_ns: int,
        *,
        reliable: bool = True,
        latched: bool = False,
    ) -> None:
        """Append a serialised message.

        Args:
            topic: Absolute topic name.
            msgtype: ``package/msg/Name``.
            cdr: The message as ``rclpy.serialization.serialize_message`` or a raw subscription
                gives it.
            stamp_ns: Log time; the order of calls does not matter.
            reliable: QoS to replay with; taken from the first message of a topic.
            latched: Transient local durability, as of /tf_static; likewise.

        Raises:
            InputError: If the type is unknown, the data no CDR, the time negative, the disk full.
        """
        if self._writer is None:
            raise InputError(f'{self.path}: is not open; use `with BagWriter(path) as bag`.')
        if len(cdr) < 4 or bytes(cdr[:2]) not in _CDR_HEADERS:
            raise InputError(f'{topic}: {bytes(cdr[:4])!r} does not start a message in CDR.')
        if not 0 <= stamp_ns < 2**63:
            raise InputError(f'{topic}: stamp {stamp_ns} ns; expected a time since 1970.')
        connection = self._connections.get((topic, msgtype))
        if connection is None:
            connection = self._connect(topic, msgtype, _qos(reliable, latched))
        self._guarded(lambda: self._writer.write(connection, stamp_ns, cdr))
        self.message_count += 1

    def add_packed(self, topic: str, packed: 'Packed', stamp_ns: int, frame_id: str) -> None:
        """Append what the estimator packed, as the message that the node would publish.

        Raises:
            InputError: As `add`.
        """
        from vlm_depth_ros.files.bag_messages import packed_message

        msgtype, message = packed_message(packed, stamp_ns, frame_id, self._types.types)
        self.add(topic, msgtype, self._types.serialize_cdr(message, msgtype), stamp_ns)

    def __exit__(self, *failure: Any) -> bool:
        """Finish the file and move it to its place, or remove it after an exception.

        Raises:
            InputError: If no message was added, or the disk is full.
        """
        if self._writer is None:  # a failed write has cleaned up
            return False
        if failure[1] is not None:
            return self._abandon(failure[1])
        if not self.message_count:
            empty = InputError(
                f'{self.path}: no message came, so no bag was written. Check that the topics are '
                'published.'
            )
            self._abandon(empty)
            raise empty
        self._guarded(self._finish)
        return False

    def _finish(self) -> None:
        self._writer.close()
        self._temporary.with_suffix('').joinpath(self.path.name).replace(self._temporary)
        self._writer = None
        self._target.__exit__(None, None, None)

    def _connect(self, topic: str, msgtype: str, qos: Qos) -> Connection:
        if msgtype not in self._types.fielddefs:
            raise InputError(
                f'{topic}: message type {msgtype!r} is unknown here; expected a standard ROS 2 '
                'type such as sensor_msgs/msg/Image.'
            )
        connection = self._writer.add_connection(
            topic, msgtype, typestore=self._types, offered_qos_profiles=[qos]
        )
        self._connections[topic, msgtype] = connection
        return connection

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run; when the disk refuses, abandon the bag at once and say so."""
        try:
            action()
        except OSError as err:
            self._abandon(err)

    def _abandon(self, failure: BaseException) -> bool:
        """Remove what was written; a failure of the disk comes out as an InputError."""
        writer, self._writer = self._writer, None
        with suppress(Exception):  # closing flushes, which fails as writing did
            writer.abort()
        return bool(self._target.__exit__(type(failure), failure, failure.__traceback__))


@dataclass(frozen=True)
class BagTopic:
    """One topic of a bag."""

    name: str
    msgtype: str
    count: int


class BagReader:
    """Reads a .mcap or .db3 file or a rosbag2 folder, message by message; a context manager."""

    def __init__(self, path: str | Path):
        """Open the bag and read its index.

        Raises:
            InputError: If it is missing, no ROS 2 bag, or cut off.
        """
        self.path = Path(path)
        self._stores: dict[tuple[str, str], Typestore] = {}
        if not self.path.exists():
            raise InputError(f'{path}: does not exist; expected a .mcap, a .db3 or a bag folder.')
        with _readable(self.path):
            self._reader = Reader(self.path)
            self._reader.open()
            self._connections = list(self._reader.connections)

    @property
    def topics(self) -> list[BagTopic]:
        """All topics, in the order in which the bag lists them."""
        counts: dict[tuple[str, str], int] = {}
        for c in self._connections:  # one topic can have several, as of several publishers
            counts[c.topic, c.msgtype] = counts.get((c.topic, c.msgtype), 0) + c.msgcount
        return [BagTopic(*names, count) for names, count in counts.items()]

    def raw(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, str, bytes]]:
        """Give (topic, log time in ns, message type, CDR) in the order of log times.

        Raises:
            InputError: If a topic is not in the bag, or the bag is damaged at this place.
        """
        wanted = [c for c in self._connections if topics is None or c.topic in topics]
        missing = set(topics or ()) - {c.topic for c in wanted}
        if missing:
            raise InputError(
                f'{self.path}: has no topic {", ".join(sorted(missing))}; it has '
                f'{", ".join(sorted({t.name for t in self.topics})) or "none at all"}.'
            )
        if not wanted:
            return
        with _readable(self.path):
            messages = self._reader.messages(wanted)
        while True:
            with _readable(self.path):
                item = next(messages, None)
            if item is None:
                return
            connection, log_time_ns, cdr = item
            yield connection.topic, log_time_ns, connection.msgtype, cdr

    def first(self, topic: str) -> Any:
        """Give the first message of a topic, deserialised.

        Raises:
            InputError: If there is none, or it cannot be read.
        """
        for _, _, msgtype, cdr in self.raw([topic]):
            return self.decode(msgtype, cdr)
        raise InputError(f'{self.path}: {topic} has no messages.')

    def decode(self, msgtype: str, cdr: bytes) -> Any:
        """Deserialise; number sequences become arrays.

        Raises:
            InputError: If the type is unknown or the bytes do not fit it.
        """
        with _readable(self.path):
            return self._store(msgtype).deserialize_cdr(cdr, msgtype)

    def _store(self, msgtype: str) -> Typestore:
        """The bag's own definition of a type, or the distributed one where the bag has none."""
        if msgtype not in self._stores:
            connection = next(c for c in self._connections if c.msgtype == msgtype)
            if connection.msgdef.format == MessageDefinitionFormat.MSG:
                store = get_typestore(Stores.EMPTY)
                store.register(get_types_from_msg(connection.msgdef.data, msgtype))
            else:
                store = get_typestore(Stores.LATEST)
            self._stores[msgtype] = store
        return self._stores[msgtype]

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._reader.is_open:
            self._reader.close()

    def __enter__(self) -> 'BagReader':
        """Close at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def read_messages(
    path: str | Path, topics: Collection[str] | None = None
) -> Iterator[tuple[str, int, Any]]:
    """Give (topic, log time in ns, message) of a bag in the order of log times.

    Raises:
        InputError: If the bag is missing, damaged or foreign, lacks a topic, or holds a message
            that cannot be decoded; name the topics that you need.
    """
    with BagReader(path) as bag:
        for topic, log_time_ns, msgtype, cdr in bag.raw(topics):
            yield topic, log_time_ns, bag.decode(msgtype, cdr)


def _qos(reliable: bool, latched: bool) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        5,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        avoid_ros_namespace_conventions=False,
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in whatever a damaged one makes the parser trip over."""
    try:
        yield
    except InputError:
        raise
    except Exception as err:  # any byte may be wrong, so any exception may come
        raise InputError(
            f'{path}: cannot be read as a ROS 2 bag: {reason_of(err)[:200]}. Expected a complete '
            '.mcap, .db3 or bag folder; `mcap recover` saves one that was cut off.'
        ) from err
