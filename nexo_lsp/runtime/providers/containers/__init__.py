"""A llama.cpp server in a container: finding Docker or Podman, starting, watching, stopping."""
