"""Serving what was found: an OpenAI-compatible endpoint over a compressed cache, and settings for other engines."""
