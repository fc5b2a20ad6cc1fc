"""Floor 1: scaling laws, counts, shapes and plans as frozen values, in numpy and scipy. It never reaches torch."""
