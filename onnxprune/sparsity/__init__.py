"""Weights that become zero, alone or in patterns, and those around them that make up for it."""
