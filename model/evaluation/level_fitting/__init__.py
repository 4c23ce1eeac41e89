"""Noise levels fitted to a model: the spacing `learned`."""
