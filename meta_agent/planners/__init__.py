"""Planners: the deterministic rules, and a language model that falls back to them."""
