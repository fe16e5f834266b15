"""One architecture a file: how gradients reach the model and the model reaches the workers."""
