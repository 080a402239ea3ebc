"""The verbs, the same for agent, console and command line. No logic, and no LangChain."""
