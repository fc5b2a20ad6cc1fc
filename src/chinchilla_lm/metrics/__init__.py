"""How good predictions are, and how sure one can be of it: task metrics and resampling, without torch."""
