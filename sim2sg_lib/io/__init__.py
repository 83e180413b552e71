"""Files: atomic writing, resumption, bounded reading, and formats of other programs."""
