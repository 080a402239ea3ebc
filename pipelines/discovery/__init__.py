"""What could be used: sources are listed, offerings recorded, candidates ranked."""
