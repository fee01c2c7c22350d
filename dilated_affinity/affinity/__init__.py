"""The paper's idea in reading order: geometry, targets, statistics, loss, propagation."""
