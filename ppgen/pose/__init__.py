"""Poses of animals, which only behaviour needs: pose files, alignment, principal components, simulated mice."""
