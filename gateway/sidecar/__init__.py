"""The process beside a gateway's worker that knows the database, so that the worker need not.

Routes come down through it, the journal goes up. Importing this package loads nothing: the worker
shares ``messages`` with it and must stay free of database drivers.
"""
