"""Conformance suites, shipped: what a new backend, optimizer or mode has to hold."""
