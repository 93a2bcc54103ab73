"""PLACE."""
