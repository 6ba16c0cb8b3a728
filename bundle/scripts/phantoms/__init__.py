"""CTs that nobody was scanned for, and labels that are wrong in a known way."""
