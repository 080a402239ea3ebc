"""Bringing a candidate to all traffic, or back: the plan, the evidence, the next action."""
