"""What the paper compares with in Table 5, usable in the place of dilated affinity."""
