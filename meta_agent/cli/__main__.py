"""``python -m meta_agent.cli``: the command line without its console script."""

from meta_agent.cli import main

main()
