"""How tokens are made."""
