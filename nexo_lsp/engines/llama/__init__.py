"""The embedded engine: llama.cpp in a worker process. `engine.py` is the server's side, `worker.py` the other."""
