"""Learning from what followed: whole slates, their rewards, and the same user's next decision (base.Steps).

dqn         double, dueling Q-learning
slateq      the value of a slate from those of its items
reinforce   top-K off-policy REINFORCE, weighted by logged propensities
following   what the three share: steps in, a served network out
network     Q(s, a) as arrays, which is all that serving loads
replay      the latest steps, by priority
training    torch: one gradient step of each
checks      what every policy that follows must pass
"""
