"""Floor 4: how good a model is: loss and bits per byte on held-out text."""
