"""The methods that Table 5 compares with: AAF, boundary reweighting and dense CRF."""
