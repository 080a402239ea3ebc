"""The deterministic, durable work. Knows nothing of the agent, its planner or the gateway."""
