"""Scores of predicted scene graphs."""
