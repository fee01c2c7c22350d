"""The methods of Table 5 that the paper compares dilated affinity with."""
