"""The training loop, its tasks, schedules, checkpoints and the lease of a GPU."""
