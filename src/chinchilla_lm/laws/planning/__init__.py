"""Budget -> model: what to train, what it costs, and what to run next."""
