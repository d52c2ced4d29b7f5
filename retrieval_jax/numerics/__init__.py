"""Array helpers that k-means, ranking and metrics share."""
