"""Trials: one contestant on one piece of work, what is kept of it, and what is computed from that afterwards."""
