"""What lies on disk to arrays and back: pairs, images, video, bags, clouds. No ROS."""
