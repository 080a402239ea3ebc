"""One adapter per file, each a catalogue that can be listed; none knows the others."""
