"""Dilated affinity in reading order: geometry, targets, statistics, loss, propagation."""
