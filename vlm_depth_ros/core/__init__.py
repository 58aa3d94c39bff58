"""Image to depth and points: no ROS, no data sets, no plotting.

Doors: ``estimator.DepthEstimator``, ``geometry.CameraIntrinsics``, ``config.ModelConfig``,
``config.RuntimeConfig``, ``model.load_model``, ``errors.VlmDepthError``.
"""
