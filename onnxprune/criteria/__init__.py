"""How units are scored: a file per family, found by themselves."""
