"""Conformance suites, shipped: what a new observer has to hold, and a tier in a dictionary to try it in."""
