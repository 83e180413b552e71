"""Adaptation methods: what a training step does with unlabeled target images."""
