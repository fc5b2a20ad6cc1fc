"""Runs -> law: the three approaches of Hoffmann et al., other forms, and how well the runs determine them."""
