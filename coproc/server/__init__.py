"""The coprocessor inside a tier server: it owns shards of models and applies descent."""
