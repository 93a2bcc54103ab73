"""Ways to have an engine on some platform."""
