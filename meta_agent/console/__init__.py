"""The operator console: pages rendered on the server, kept fresh by htmx and one event stream a page."""
