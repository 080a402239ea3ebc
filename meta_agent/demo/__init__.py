"""The demo fleet: simulated providers that are real processes, and the hand of fate that moves them.

Everything here speaks HTTP to the product, exactly as strangers would.
"""
