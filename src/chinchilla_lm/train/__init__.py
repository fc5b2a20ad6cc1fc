"""Floor 3: THE training loop, its schedules, optimizer and checkpoints, and the policy of one job around it."""
