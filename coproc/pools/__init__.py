"""Who runs the workers: threads of this process, processes of this host, or tasks of a Spark cluster."""
