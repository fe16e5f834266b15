"""What server and workers share in memory: a model's control region, the seats of its workers, its versions."""
