"""Learning to recommend: arrays in, arrays out; no clock, no network, no files.

registry         policies by name: make("lints", dim=64); names and options without loading arrays
base, checks     the contract of a policy, and what every policy must pass
features         what linear models see of a candidate
slates, few      drawing and re-scoring slates with exact propensities, mixtures of two policies included
choices          ε-greedy and inverse gap weighting (SquareCB) as such distributions
baselines        random, popular, item to item
linear           ε-greedy, softmax, SquareCB, LinUCB and Thompson sampling over one linear regression
ridge            that regression, Bayesian and moved on by every example
fading           what it forgets: discounting, and after a change (page_hinkley)
neural_linear    the same over features that a small network learns (trunk, trunk_training, memory)
behaviour        popularity and co-occurrence of items (pairs, keys)
actor            a network trained elsewhere, served
delays           what has come of a reward by now; positions: how much a position is looked at
conservative     learning beside a baseline that never costs more than a stated share of it
snapshot         policies as bytes
rl/              policies that learn from what followed a slate
evaluation/      judging policies: by a log, and by their traffic
"""
