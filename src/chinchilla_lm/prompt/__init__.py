"""Floor 1: prompts as values: templates, demonstrations, scoring rules and answers, in numpy. It never reaches torch."""
