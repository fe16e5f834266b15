"""Training data: Arrow rows become arrays, arrays one block of the tier, a block mini-batches."""
