"""Files: atomic writing, resumption, bounded reading, and the formats of others."""
