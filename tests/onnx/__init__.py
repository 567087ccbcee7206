"""Models that exist only as files."""
