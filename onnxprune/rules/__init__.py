"""What each operator ties and locks: a file per family, found by themselves."""
