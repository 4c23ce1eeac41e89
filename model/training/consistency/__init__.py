"""Consistency tuning: a model that draws in one or two evaluations, distilled from one that needs more."""
