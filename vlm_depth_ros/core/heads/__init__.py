"""Depth heads by name. Import ``registry`` to build one."""
