"""The simulator: scenes become images with exact labels, and scene graphs become scenes."""
