"""Pipeline parallelism: schedules as programs, and the simulator that runs them."""
