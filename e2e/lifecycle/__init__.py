"""Proof of the operator's lifecycle on real kubelets: every cause, early and late, with the operator there or away."""
