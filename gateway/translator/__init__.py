"""A process of its own for providers that do not speak OpenAI's wire; litellm speaks theirs.

litellm takes seconds to import and memory to hold, and it must never slow the gateway's workers. They
see a server on a Unix socket that speaks OpenAI's chat completions and embeddings, and start it as
``gateway.translator_process`` says. Only ``handover`` is for them to import: it loads nothing.

Decides nothing: no retry, no fallback, no budget, no log of what was asked or answered.
"""
