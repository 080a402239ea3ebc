"""A candidate against the stable release, measured before it sees any traffic."""
