"""Floor 1: prompts as values: templates, demonstrations, scoring rules, answers; numpy only. It never reaches torch."""
