"""What only behaviour needs: pose files, alignment, principal components, simulated mice."""
