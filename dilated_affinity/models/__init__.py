"""DeepLabv3+ with a dilated affinity head; one file for each backbone family."""
