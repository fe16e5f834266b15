"""Comparisons: many trials, each in fresh processes, in turns."""
