"""A comparison as one page to read."""
