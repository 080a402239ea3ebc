"""What the agent may do: rules as data and a pure engine. No I/O, no clock, no model call."""
