"""The forms of scaling laws: frozen values that say what loss a size reaches after some number of tokens."""
