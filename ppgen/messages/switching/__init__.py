"""Chains of discrete states whose observations depend on earlier ones, some of them missing."""
