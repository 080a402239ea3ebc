"""The agent that runs a fleet of language models, and the processes that operators meet."""
