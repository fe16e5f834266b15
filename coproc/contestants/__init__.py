"""Contestants of a comparison that are no mode of the project; one file each."""
