"""Judging policies: by a log before they get traffic, by their traffic afterwards.

evaluation        a logged file, a target: estimates, and when to refuse one
estimators        IPS to DRos, a decision at a time; slate_estimators: IIPS, RIPS, cascade-DR
reward_model      the cross-fitted estimate of a reward that doubly robust estimators need
intervals         by user, for one look or for all
ledger            what an arm's users earned, in bounded memory
gate              whether a challenger may take over, however often one looks
guardrails        what takes a bad version back
"""
