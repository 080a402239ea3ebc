"""Log lines for machines: one JSON object each, with the request and the trace that they belong to.

Standard library only: gateway, sidecar and the processes of the control plane share it.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: What a line says of the call that it is about, if it is about one.
FIELDS = ("request_id", "trace_id", "span_id", "use_case", "deployment", "error")


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record. Line breaks of messages are escaped: none can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, style: str) -> None:
    """Send the log to stderr, as ``text`` or as ``json``."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else logging.Formatter(PLAIN))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
