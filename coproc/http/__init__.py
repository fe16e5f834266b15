"""A parameter server over HTTP, in a process of its own: the model as a resource, gradients as posts to it.

After the server that Adatao's authors compared their coprocessor with (Vu Pham's "DeepSpark", 2015: Flask, pickled
models), as one would build it today: an asynchronous server, raw float32, versions as entity tags, connections that are
kept, gradients that count once.
"""
