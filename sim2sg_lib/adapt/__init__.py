"""Adaptation methods: what a training step does with unlabelled target images."""
