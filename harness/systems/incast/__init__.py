"""Many senders to one receiver through a switch, and what other flows lose by it."""
