"""The training run: driver, loop, optimisers, schedules and checkpoints."""
