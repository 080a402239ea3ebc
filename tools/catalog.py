"""Every tool, in an explicit list: there is no registry that something could sneak into."""

from __future__ import annotations

from tools import abort, deploy, rank, rollback, scan, test
from tools.contract import Tool, UnknownToolError

TOOLS: dict[str, Tool] = {
    module.TOOL.name: module.TOOL for module in (scan, rank, test, deploy, rollback, abort)
}


def get_tool(name: str) -> Tool:
    """The tool of exactly that name. Raises :class:`UnknownToolError`."""
    tool = TOOLS.get(name)
    if tool is None:
        raise UnknownToolError(f"there is no tool {name!r}; there are: {', '.join(TOOLS)}")
    return tool
