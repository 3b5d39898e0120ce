"""The verbs of the command line, a file each. Only click is imported before a verb runs."""
