"""The main job: budget -> sweep -> law -> forecast -> plan -> training -> evaluation -> report."""
