"""Schemas of everything under ``config/`` and the loading that turns mistakes into one clear line."""
