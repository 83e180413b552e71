"""The environments: one file of declarations each, found by name."""
