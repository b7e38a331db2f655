"""The tidy store of everything that was trained, measured or computed."""
