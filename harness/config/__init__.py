"""Schemas of everything under ``config/``, and loading that says in one line what is wrong."""
