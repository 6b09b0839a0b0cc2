"""The names of all policies, for whoever must not load arrays to know them."""

BASELINES = ("random", "popular", "item_to_item")  # learn nothing: honest controls
TRAINED = ("actor",)  # learn nothing from traffic: served from a snapshot that was trained elsewhere
LEARNED = ("epsilon_greedy", "softmax", "squarecb", "linucb", "lints", "neural_linear", "dqn", "slateq", "reinforce")
POLICIES = BASELINES + TRAINED + LEARNED
