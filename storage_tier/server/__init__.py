"""The server of a tier: its blocks and its files, by gRPC and by the line."""

from __future__ import annotations

from storage_tier.server.serving import TierServer as TierServer
