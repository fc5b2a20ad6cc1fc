"""Floor 2: the report page, its figures and the model card, made from the records of a run directory. No torch."""
