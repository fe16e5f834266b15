"""The client of a tier: files by shared memory on a server's host, by the wire from anywhere else."""

from __future__ import annotations

from storage_tier.client.client import TierClient as TierClient
