"""Measurements of speed, always side by side in one process."""
