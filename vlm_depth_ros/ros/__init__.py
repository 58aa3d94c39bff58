"""Messages to core and back: the only place where rclpy is imported."""
