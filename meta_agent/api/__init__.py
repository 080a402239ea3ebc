"""The control process over HTTP: JSON under ``/api/v1``, with the console mounted beside it."""
