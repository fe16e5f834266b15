"""A model as a directory of the tier: its newest version is a file, and a gradient written as a file is a push."""
