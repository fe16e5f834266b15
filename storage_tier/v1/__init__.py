"""Generated messages and stubs of proto/storage_tier/v1."""
