"""Floor 0: errors, units, model shapes, strict configuration, records and files. Standard library only."""
