"""Depth for robots from the vision-language tower they already run."""

__version__ = '0.1.0'
