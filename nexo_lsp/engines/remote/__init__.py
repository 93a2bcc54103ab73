"""Engines on other machines: any server that speaks OpenAI's protocol."""
