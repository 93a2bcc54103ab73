"""The embedded engine: llama.cpp in a worker process (`engine.py`: the server's side)."""
