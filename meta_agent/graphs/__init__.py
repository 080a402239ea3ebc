"""The agent's two state machines, their threads, and which version of a machine a thread belongs to.

State is ids only: what a node finds goes into storage, and the next node reads it there. Importing this
package closes the checkpointer to every type but primitives, which must happen before it is imported.
"""

import os

os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
