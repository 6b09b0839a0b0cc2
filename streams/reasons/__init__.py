"""Why an item stands in a slate: what its score owes to each entry of the history, in words."""
