"""Other people's processes: a reader or a camera with stock settings, and nothing of ours.

    ros_peer.py reader TOPIC TYPE reliable|best_effort MESSAGES SECONDS
    ros_peer.py camera TOPIC reliable|best_effort FRAMES RATE_HZ HEIGHT WIDTH

Prints one JSON object at its end.
"""

import array
import json
import sys
import time

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

RELIABILITIES = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}


def read(node, topic: str, kind: str, reliability: str, most: str, seconds: str) -> dict:
    """Count what comes: up to `most`, until four quiet seconds, or for `seconds`."""
    stamps_ns = []
    quiet_s = float('inf')

    def receive(message: object) -> None:
        nonlocal quiet_s
        quiet_s = time.monotonic() + 4
        stamps_ns.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)

    qos = QoSProfile(depth=5, reliability=RELIABILITIES[reliability])
    node.create_subscription(
        {'Image': Image, 'PointCloud2': PointCloud2}[kind], topic, receive, qos
    )
    print('ready', flush=True)
    end_s = time.monotonic() + float(seconds)
    while len(stamps_ns) < int(most) and time.monotonic() < min(end_s, quiet_s):
        rclpy.spin_once(node, timeout_sec=0.1)
    return {'stamps_ns': stamps_ns}


def play(
    node, topic: str, reliability: str, frames: str, rate_hz: str, height: str, width: str
) -> dict:
    """Publish grey images once somebody subscribes in the same way as they are offered."""
    message = Image(height=int(height), width=int(width), encoding='rgb8', step=3 * int(width))
    message.header.frame_id = 'camera_optical_frame'
    message.data = array.array('B', bytes([127]) * (message.height * message.step))
    qos = QoSProfile(depth=10, reliability=RELIABILITIES[reliability])
    publisher = node.create_publisher(Image, topic, qos)
    name = publisher.topic_name

    def is_matched() -> bool:
        subscriptions = node.get_subscriptions_info_by_topic(name)
        return any(s.qos_profile.reliability == qos.reliability for s in subscriptions)

    while not is_matched():
        time.sleep(0.05)
    time.sleep(0.5)
    stamps_ns = []
    for _ in range(int(frames)):
        stamps_ns.append(time.time_ns())
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamps_ns[-1], 10**9)
        publisher.publish(message)
        time.sleep(1 / float(rate_hz))
    time.sleep(1)
    return {'stamps_ns': stamps_ns}


def main() -> None:
    """Do one of both."""
    role, *arguments = sys.argv[1:]
    rclpy.init()
    node = rclpy.create_node(f'stock_{role}')
    result = {'reader': read, 'camera': play}[role](node, *arguments)
    print(json.dumps(result), flush=True)
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
