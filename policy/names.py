"""The names of all policies, for whoever must not load arrays to know them."""

BASELINES = ("random", "popular", "item_to_item")  # learn nothing: honest controls
LEARNED = ("linucb", "lints", "neural_linear")
POLICIES = BASELINES + LEARNED
