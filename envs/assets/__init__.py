"""Procedural assets of the environments, a file each. Nothing here knows of scenes or domains."""
