"""The under-store: the filesystem below a mount, given by an fsspec URL; and the queue that persists into it.

Nothing is imported with the package: a server that mounts nothing loads no fsspec.
"""
